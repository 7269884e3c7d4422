"""What a message shows of a user's words: one printable line of bounded length."""

import pickle

from vlm_distill.errors import ConfigError, did_you_mean, few, one_line, printable, shown

NAME = "a\r\n\x1b[31mb\u202ec\u2028d\ud800"


def test_a_message_is_one_printable_line_of_bounded_length() -> None:
    error = ConfigError(f"model {NAME}: wrong\nindeed " + "x" * 10_000)
    assert str(error).startswith(r"model a \x1b[31mb\u202ec d\ud800: wrong indeed xxx")
    assert str(error).isprintable()
    assert len(str(error)) == 4000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_words_of_all_scripts_are_shown_as_they_are() -> None:
    for text in ("Größe 12 µm", "模型", "نموذج", "модель/été"):
        assert printable(text) == text
        assert str(ConfigError(text)) == text


def test_a_log_line_keeps_its_spaces_and_shows_a_line_end_as_an_escape() -> None:
    assert printable("a  b\nc") == r"a  b\nc"


def test_a_value_is_shown_in_80_characters() -> None:
    assert shown("a\n") == r"'a\n'"
    assert len(shown(list(range(1000)))) == 80
    assert shown([10**5000]) == "an integer of more than 4,300 digits"


def test_of_many_known_names_some_are_listed_and_the_others_counted() -> None:
    names = [f"column {number:05}" + "x" * 500 for number in range(20_000)]
    hint = did_you_mean("y" * 100_000, names)
    assert hint.startswith("known: column 00000x")
    assert hint.endswith("... and 19,940 more")
    assert len(hint) < 6000
    assert did_you_mean("lodu", ["loud", "quiet"]) == "did you mean 'loud'? known: loud, quiet"
    assert did_you_mean("x", []) == "known: none"


def test_the_message_of_another_library_is_cut() -> None:
    assert len(one_line(ValueError("x\n" * 5000))) == 300


def test_many_names_are_counted_after_the_first() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few([str(n) for n in range(1022)]).endswith(", 18, 19 and 1,002 more")
