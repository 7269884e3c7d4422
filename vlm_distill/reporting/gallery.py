"""Held-out prompts with the answers of teacher and student: a bounded, deterministic choice of all kinds."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from vlm_distill.data.dataset import read_part
from vlm_distill.data.images import ImageStore
from vlm_distill.data.store import ResponseStore
from vlm_distill.errors import DataError
from vlm_distill.evaluation.compare import same_answer
from vlm_distill.evaluation.scorers.exact_match import ExactMatch
from vlm_distill.files import hash_json
from vlm_distill.records import Example, Message, Response
from vlm_distill.reporting.facts import Run
from vlm_distill.reporting.pictures import data_uri
from vlm_distill.runs.plan import HELD_OUT, STUDENT, TEACHER
from vlm_distill.shards import MANIFEST

MAX_CARDS = 60
MAX_PICTURES = 3  # of one prompt
MAX_PICTURE_CHARACTERS = 1_800_000  # of all data URIs together
MAX_QUESTION, MAX_ANSWER, MAX_REFERENCES = 700, 500, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one model said. `note` says that it was cut or that there is none."""

    who: str
    text: str
    note: str
    is_right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A prompt with its answers. `kinds` are what the filters of the page look for."""

    id: str
    question: str
    references: tuple[str, ...]
    answers: tuple[Answer, ...]
    kinds: tuple[str, ...]
    pictures: tuple[str, ...]
    num_pictures_left_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The cards, and `counts`: of each kind among all compared prompts, `all` being their number."""

    cards: list[Card]
    counts: Mapping[str, int]
    after: str
    num_broken_pictures: int


def read_gallery(run: Run, after: str | None) -> Gallery | None:
    """Return the gallery for the student `after`; None without a student or without the teacher's answers."""
    answers = dict(_stored_answers(run, after))
    if after is None or after not in answers or TEACHER not in answers:
        return None
    examples = _held_out(run, answers[TEACHER])
    judged = answers[after], answers[TEACHER]
    kinds = {one.id: _kinds(one, *(answered.get(one.id) for answered in judged)) for one in examples}
    pictures = _Pictures(ImageStore(run.folder / "data" / "images"))
    cards = [_card(one, kinds[one.id], answers, pictures) for one in choose(examples, kinds)]
    counts = Counter(kind for own in kinds.values() for kind in own)
    return Gallery(
        cards=cards,
        counts={"all": len(examples), **counts},
        after=after,
        num_broken_pictures=pictures.num_broken,
    )


def _stored_answers(run: Run, after: str | None) -> Iterator[tuple[str, dict[str, Response]]]:
    """Yield the answers of the teacher, of the student before training and of `after`, as far as stored."""
    places = [(TEACHER, run.held_out.folder)] if run.held_out else []
    places += [
        (one.label, one.answers) for one in run.evaluations if one.step.track == STUDENT or one.label == after
    ]
    for who, folder in places:
        if (folder / MANIFEST).exists():
            yield who, {response.example_id: response for response in ResponseStore(folder).read()}


def _held_out(run: Run, wanted: Mapping[str, Response]) -> list[Example]:
    """Return the examples that the teacher answered; without prepared data there are none."""
    if run.data is None:
        return []
    return [one for one in read_part(run.folder / "data", HELD_OUT, run.data) if one.id in wanted]


def choose(examples: Sequence[Example], kinds: Mapping[str, tuple[str, ...]]) -> list[Example]:
    """Return up to `MAX_CARDS` examples, of every combination of kinds in turn, in the order of a hash."""
    groups: dict[tuple[str, ...], list[Example]] = {}
    for example in sorted(examples, key=lambda one: hash_json(one.id)):
        groups.setdefault(kinds[example.id], []).append(example)
    turns = zip_longest(*(groups[key] for key in sorted(groups)))
    return [example for turn in turns for example in turn if example is not None][:MAX_CARDS]


def _kinds(example: Example, student: Response | None, teacher: Response | None) -> tuple[str, ...]:
    """Return whether the student is right, where there are references, and whether it agrees."""
    is_right = _is_right(student, example)
    kinds = () if is_right is None else ("right" if is_right else "wrong",)
    agrees = student is not None and teacher is not None and same_answer(student.text, teacher.text)
    return (*kinds, "agreement" if agrees else "disagreement")


def _is_right(response: Response | None, example: Example) -> bool | None:
    if not example.references:
        return None
    return response is not None and ExactMatch()(response.text, example.references) == 1.0


def _card(
    example: Example,
    kinds: tuple[str, ...],
    answers: Mapping[str, Mapping[str, Response]],
    pictures: "_Pictures",
) -> Card:
    shown = pictures.of(example)
    return Card(
        id=example.id,
        question=clipped(_question(example.messages), MAX_QUESTION),
        references=tuple(clipped(one, MAX_ANSWER) for one in example.references[:MAX_REFERENCES]),
        answers=tuple(_answer(who, own.get(example.id), example) for who, own in answers.items()),
        kinds=kinds,
        pictures=shown,
        num_pictures_left_out=len(example.images) - len(shown),
    )


def _answer(who: str, response: Response | None, example: Example) -> Answer:
    note = ""
    if response is None:
        note = "empty, aborted or not asked"
    elif response.finish == "length":
        note = f"cut at {len(response.token_ids)} tokens"
    return Answer(
        who=who,
        text=clipped(response.text.strip(), MAX_ANSWER) if response else "",
        note=note,
        is_right=_is_right(response, example),
    )


def _question(messages: Sequence[Message]) -> str:
    """Return the texts of a prompt; with several turns each stands behind its role."""
    turns = [
        (message.role, " ".join(part.text.strip() for part in message.content if part.type == "text"))
        for message in messages
    ]
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)


def clipped(text: str, limit: int) -> str:
    """Return the text, or its beginning and how many characters follow."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


class _Pictures:
    """Thumbnails within the byte budget of the page, and the number of pictures that could not be read."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self.num_broken = 0
        self.num_characters = 0

    def of(self, example: Example) -> tuple[str, ...]:
        uris = []
        for image in example.images[:MAX_PICTURES]:
            try:
                uri = data_uri(self.store.load(image))
            except DataError:
                self.num_broken += 1
                continue
            if self.num_characters + len(uri) <= MAX_PICTURE_CHARACTERS:
                self.num_characters += len(uri)
                uris.append(uri)
        return tuple(uris)
