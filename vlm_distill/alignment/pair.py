"""Whether a teacher and a student fit together, from tokenizers, processors and configs, without weights.

The loss compares two distributions over ids; which of them mean the same token is an `Alignment`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image as Picture

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.chat import configured_stops
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.alignment.permuted_ids import permuted_ids
from vlm_distill.alignment.same_ids import same_ids
from vlm_distill.alignment.tokens import vocabulary_width
from vlm_distill.errors import few
from vlm_distill.models.placement import is_quantised, meta_model
from vlm_distill.records import Example, Image, Message, Text

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
    """How two models fit together.

    `added_stops` are ids of the student at which only the teacher has stopped before.
    """

    alignment: Alignment
    teacher: PairSideReport
    student: PairSideReport
    added_stops: tuple[int, ...]

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        aligned = self.alignment
        rows = [f"route: {aligned.route}"]
        for role, side in (("teacher", self.teacher), ("student", self.student)):
            stops = ", ".join(f"{token} ({token_id})" for token, token_id in side.stop_tokens.items())
            rows.append(
                f"{role}: {side.name}, {side.num_parameters / 1e6:.2f}M parameters, {side.num_tokens} tokens "
                f"in an output layer of {side.vocabulary_width}, "
                f"{side.num_image_tokens} tokens per probe image, stops at {stops}"
            )
        for role, tokens in (("teacher", aligned.only_teacher), ("student", aligned.only_student)):
            if tokens:
                rows.append(
                    f"added tokens that only the {role} has, outside the loss: {few(tokens, most=10)}"
                )
        if aligned.num_beyond:
            rows.append(
                f"shared added tokens behind the compared ids, outside the loss: {aligned.num_beyond}"
            )
        if self.added_stops:
            rows.append(
                f"stop ids of the teacher at which the student will stop too: {list(self.added_stops)}"
            )
        return rows


def pair_report(teacher: LoadedModel, student: LoadedModel) -> PairReport:
    """Return how the two models fit together; both may be skeletons.

    Raises:
        AdapterError: their ids cannot be aligned.
    """
    alignment = align(teacher, student)
    return PairReport(
        alignment=alignment,
        teacher=_describe(teacher),
        student=_describe(student),
        added_stops=tuple(stop for stop in alignment.stops(teacher.stop_ids) if stop not in student.stop_ids),
    )


def align(teacher: LoadedModel, student: LoadedModel) -> Alignment:
    """Return which ids of the two models mean the same token, by the first route that leads to all.

    Raises:
        AdapterError: there is none.
    """
    return same_ids(teacher, student) or permuted_ids(teacher, student)


def share_stops(
    student: LoadedModel, teacher: LoadedModel | None, alignment: Alignment = ALL_IDS
) -> LoadedModel:
    """Return the student stopping at the ids that it learns, also when it is saved.

    They are the one with which labels end, and those of the teacher.
    """
    theirs = alignment.stops(teacher.stop_ids) if teacher else ()
    stops = tuple(dict.fromkeys([*student.stop_ids, *theirs]))
    model: Any = student.model
    if stops == student.stop_ids and stops[0] in configured_stops(model.generation_config):
        return student
    model.generation_config.eos_token_id = list(stops)
    return replace(student, stop_ids=stops)


def _describe(loaded: LoadedModel) -> PairSideReport:
    tokenizer = loaded.tokenizer
    return PairSideReport(
        name=loaded.path,
        num_parameters=count_parameters(loaded),
        vocabulary_width=vocabulary_width(loaded),
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
