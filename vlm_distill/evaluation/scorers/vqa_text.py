"""Text normalisation of the VQA family, value for value: VQA v2 (vqaEval.py), M4C and lmms-eval.

Bugs of the official code are part of the metric and kept: a look-behind that is none, a count that was meant
as a flag, punctuation that is deleted or replaced by a space depending on the whole text.
"""

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official pattern is `(?!<=\d)(\.)(?!\d)`; its first group, a misspelt look-behind, is always true.
_PERIOD = re.compile(r"\.(?!\d)")
# `sub("", text, re.UNICODE)` passes the flag as the count of replacements.
_MAX_PERIODS = int(re.UNICODE)
OFFICIAL_COMMA = re.compile(r"\d,\d")
M4C_COMMA = re.compile(r"(?<=\d),+(?=\d)")

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset(("a", "an", "the"))

# The official table maps each of these words from its forms with any one apostrophe left out. Its entries
# with a capital I cannot fire, because the text is lower-cased first, and are not here.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED
    for place, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round in the official table


def clean_whitespace(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise_punctuation(text: str, *, comma: re.Pattern[str]) -> str:
    """Delete or blank punctuation; which of the two is decided on the text as it came in."""
    has_digit_comma = comma.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        deleted = has_digit_comma or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def normalise_words(text: str) -> str:
    """Lower-case, write number words as digits, drop articles, restore apostrophes, collapse spaces."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_vqa(text: str, *, comma: re.Pattern[str] = OFFICIAL_COMMA) -> str:
    """Return `text` after processPunctuation and processDigitArticle of vqaEval.py."""
    return normalise_words(normalise_punctuation(text, comma=comma))


def normalise_m4c(text: str) -> str:
    """Return `text` after the EvalAI answer processor of M4C (TextVQA, also LLaVA's and lmms-eval's)."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_vqa(clean_whitespace(text), comma=M4C_COMMA)
