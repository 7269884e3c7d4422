"""Whether a teacher and a student fit together, from tokenizers, processors and configs, without weights.

The loss compares two distributions over ids, so an id must mean the same token on both sides. Image
placeholders and other added tokens may differ: they never occur in a response. Everything else that differs
is refused, never guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image as Picture

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import AdapterError
from vlm_distill.models.placement import is_quantised, meta_model
from vlm_distill.records import Example, Image, Message, Text

IDENTICAL = "identical tokenizers: ids are shared"
# Pixels of a common photograph, so that families with dynamic resolution show their cost.
PROBE_SIZE = (640, 480)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSideReport:
    """One model in numbers.

    `vocabulary_width` is the padded width of its output layer, `num_tokens` what its tokenizer defines.
    `num_image_tokens` is what one probe image costs in the prompt, 0 for a text model.
    """

    name: str
    num_parameters: int
    vocabulary_width: int
    num_tokens: int
    num_image_tokens: int
    stop_tokens: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairReport:
    """How two models are aligned.

    `vocabulary` is the range of ids that mean the same token on both sides and lie inside both output layers:
    the columns that a loss may compare. `only_teacher` and `only_student` are added tokens that the other
    side lacks or has elsewhere, `num_beyond` counts shared added tokens behind the range. `added_stops` are
    stop ids of the teacher at which the student did not stop before. `suppressed_ids` must not be generated:
    ids behind the range, which one model could not read, and the placeholders of images.
    """

    route: str
    teacher: PairSideReport
    student: PairSideReport
    vocabulary: slice
    suppressed_ids: tuple[int, ...]
    num_beyond: int
    only_teacher: tuple[str, ...]
    only_student: tuple[str, ...]
    added_stops: tuple[int, ...]

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        rows = [f"route: {self.route}; losses compare ids 0 to {self.vocabulary.stop - 1}"]
        for role, side in (("teacher", self.teacher), ("student", self.student)):
            stops = ", ".join(f"{token} ({token_id})" for token, token_id in side.stop_tokens.items())
            rows.append(
                f"{role}: {side.name}, {side.num_parameters / 1e6:.2f}M parameters, {side.num_tokens} tokens "
                f"in an output layer of {side.vocabulary_width}, "
                f"{side.num_image_tokens} tokens per probe image, stops at {stops}"
            )
        for role, tokens in (("teacher", self.only_teacher), ("student", self.only_student)):
            if tokens:
                rows.append(
                    f"added tokens that only the {role} has, outside the loss: {', '.join(tokens[:10])}"
                )
        if self.num_beyond:
            rows.append(f"shared added tokens behind the compared ids, outside the loss: {self.num_beyond}")
        if self.added_stops:
            rows.append(
                f"stop ids of the teacher at which the student will stop too: {list(self.added_stops)}"
            )
        return rows


def pair_report(teacher: LoadedModel, student: LoadedModel) -> PairReport:
    """Return how the two models are aligned; both may be skeletons.

    Raises:
        AdapterError: an id means two tokens, or a token that a response may contain exists on one side only.
    """
    only_teacher, only_student, shared = _compare_vocabularies(teacher, student)
    stop = _shared_range(teacher, student, shared)
    return PairReport(
        route=IDENTICAL,
        teacher=_describe(teacher),
        student=_describe(student),
        vocabulary=slice(0, stop),
        suppressed_ids=_suppressed_ids(teacher, student, stop),
        num_beyond=len(shared) - stop,
        only_teacher=only_teacher,
        only_student=only_student,
        added_stops=tuple(stop for stop in teacher.stop_ids if stop not in student.stop_ids),
    )


def share_stops(student: LoadedModel, teacher: LoadedModel) -> LoadedModel:
    """Return the student stopping where the teacher stops too, also when it is saved: it learns those ids."""
    stops = tuple(dict.fromkeys([*student.stop_ids, *teacher.stop_ids]))
    if stops == student.stop_ids:
        return student
    model: Any = student.model
    model.generation_config.eos_token_id = list(stops)
    return replace(student, stop_ids=stops)


def _compare_vocabularies(
    teacher: LoadedModel, student: LoadedModel
) -> tuple[tuple[str, ...], tuple[str, ...], dict[int, str]]:
    """Return the added tokens that stand on one side only (or elsewhere), and the shared tokens by id."""
    theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    shared = {token_id: token for token, token_id in theirs.items() if ours.get(token) == token_id}
    only_teacher = [token for token, token_id in theirs.items() if ours.get(token) != token_id]
    only_student = [token for token, token_id in ours.items() if theirs.get(token) != token_id]
    added = _added_tokens(teacher.tokenizer) | _added_tokens(student.tokenizer)
    wrong = sorted({*only_teacher, *only_student} - added)
    if wrong:
        raise AdapterError(
            f"{teacher.path} and {student.path}: token sets do not match: {len(wrong)} of "
            f"{len(theirs.keys() | ours.keys())} tokens differ (first: {wrong[:5]}); build the student with "
            "the teacher's tokenizer (student.build.tokenizer: teacher) or choose one of its family"
        )
    return tuple(sorted(only_teacher)), tuple(sorted(only_student)), shared


def _shared_range(teacher: LoadedModel, student: LoadedModel, shared: Mapping[int, str]) -> int:
    """Return n so that all ids below n are shared; behind it may be added tokens that no response needs."""
    width = min(_width(teacher), _width(student))
    stop = next(token_id for token_id in range(width + 1) if token_id == width or token_id not in shared)
    added = _added_tokens(teacher.tokenizer) & _added_tokens(student.tokenizer)
    needed = {token_id: token for token_id, token in shared.items() if token not in added}
    for side in (teacher, student):
        needed |= {token_id: side.tokenizer.convert_ids_to_tokens(token_id) for token_id in side.stop_ids}
    lost = sorted(token_id for token_id in needed if token_id >= stop)
    if lost:
        first = [needed[token_id] for token_id in lost[:5]]
        raise AdapterError(
            f"{teacher.path} and {student.path}: only ids below {stop} mean the same token and lie "
            f"inside both output layers, but responses need {len(lost)} more (first: {first}); "
            "use one tokenizer for both models (student.build.tokenizer: teacher)"
        )
    return stop


def _suppressed_ids(teacher: LoadedModel, student: LoadedModel, stop: int) -> tuple[int, ...]:
    behind = range(stop, max(_width(teacher), _width(student)))
    return tuple(sorted({*behind, *teacher.image_token_ids, *student.image_token_ids}))


def _added_tokens(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )


def _width(loaded: LoadedModel) -> int:
    config: Any = loaded.model.config
    return int(config.get_text_config().vocab_size)


def _describe(loaded: LoadedModel) -> PairSideReport:
    tokenizer = loaded.tokenizer
    return PairSideReport(
        name=loaded.path,
        num_parameters=count_parameters(loaded),
        vocabulary_width=_width(loaded),
        num_tokens=len(tokenizer),
        num_image_tokens=num_image_tokens(loaded),
        stop_tokens={tokenizer.convert_ids_to_tokens(stop): stop for stop in loaded.stop_ids},
    )


def count_parameters(loaded: LoadedModel) -> int:
    """Return how many parameters the model has, tied ones once and those of a quantised one as they were."""
    model: Any = loaded.model
    if is_quantised(model):
        model = meta_model(loaded.adapter.model_class, model.config)
    return sum(parameter.numel() for parameter in model.parameters())


def num_image_tokens(loaded: LoadedModel) -> int:
    """Return how many prompt tokens a probe image of common size costs, 0 for a text model."""
    if not loaded.image_token_ids:
        return 0
    probe = Example(
        id="probe", messages=(Message(role="user", content=(Image(), Text(text="?"))),), images=("probe",)
    )
    picture = Picture.new("RGB", PROBE_SIZE, "gray")
    prompts = loaded.adapter.encode(loaded.processor, [probe], [[picture]])
    return int(torch.isin(prompts.input_ids, torch.tensor(loaded.image_token_ids)).sum())
