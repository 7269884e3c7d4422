"""The variants that loss_head.py compares, their inputs and the float64 oracle of their gradients.

Every variant is a function `step(inputs, scenario)` that returns a scalar loss, whose backward fills the
gradients of `inputs.hidden` and, unless it is frozen, of the student's weight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from vlm_distill.batches import Head
from vlm_distill.losses import ForwardKL, JensenShannon, RowGroup, Rows, SkewKL, SkewReverseKL
from vlm_distill.losses import linear_divergence as ours

VOCABULARY, STUDENT_WIDTH, TEACHER_WIDTH = 151_936, 512, 1024
ALPHA = 0.1
DIRECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One response per sequence: `prompt` tokens, then a window as long as the longest of `lengths`.

    `loss` is "kl", "jsd" or "distillm2": skew KL on the first half of the responses, skew reverse KL on the
    other half, as the public code trains them.
    """

    name: str
    loss: str
    prompt: int
    lengths: tuple[int, ...]
    dtype: str = "float32"
    frozen: bool = False

    @property
    def mask(self) -> Tensor:
        """Return whether a token of the window is a response token, [sequence, window]."""
        return torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Hidden states of the positions that a variant is given, and both output layers.

    [sequence, position, width]: the window, or the whole sequences for what reads those.
    """

    hidden: Tensor
    teacher_hidden: Tensor
    weight: Tensor
    teacher_weight: Tensor


def write_weights(folder: Path) -> None:
    """Write both output layers, in both precisions, for all processes to map into memory."""
    generator = torch.Generator().manual_seed(0)
    for name, width in (("student", STUDENT_WIDTH), ("teacher", TEACHER_WIDTH)):
        weight = torch.randn(VOCABULARY, width, generator=generator).mul_(2.0 / math.sqrt(width))
        for dtype in (torch.float32, torch.bfloat16):
            path = folder / f"{name}_{str(dtype).removeprefix('torch.')}"
            mapped = torch.from_file(str(path), shared=True, size=weight.numel(), dtype=dtype)
            mapped.copy_(weight.flatten())


def read_inputs(folder: Path, scenario: Scenario, *, whole: bool) -> Inputs:
    dtype = getattr(torch, scenario.dtype)
    weights = [
        torch.from_file(
            str(folder / f"{name}_{scenario.dtype}"), shared=False, size=VOCABULARY * width, dtype=dtype
        ).view(VOCABULARY, width)
        for name, width in (("student", STUDENT_WIDTH), ("teacher", TEACHER_WIDTH))
    ]
    for weight in weights:
        weight.view(-1)[:: 4096 // weight.itemsize].sum()  # every page is resident before a measurement
    count = len(scenario.lengths)
    hidden = []
    for seed, width in enumerate((STUDENT_WIDTH, TEACHER_WIDTH)):
        generator = torch.Generator().manual_seed(seed + 1)
        window = torch.randn(count, max(scenario.lengths), width, generator=generator)
        prompt = torch.randn(count, scenario.prompt, width, generator=generator)
        hidden.append((torch.cat([prompt, window], dim=1) if whole else window).to(dtype))
    return Inputs(
        hidden=hidden[0].requires_grad_(),
        teacher_hidden=hidden[1],
        weight=weights[0].requires_grad_(not scenario.frozen),
        teacher_weight=weights[1],
    )


def _ours(inputs: Inputs, scenario: Scenario, byte_budget: int) -> Tensor:
    mask = scenario.mask
    student = Rows(hidden=inputs.hidden[mask], head=Head(weight=inputs.weight))
    teacher = Rows(hidden=inputs.teacher_hidden[mask], head=Head(weight=inputs.teacher_weight))
    num_rows = len(student.hidden)
    groups = []
    for divergence, rows in _parts(scenario):
        weight = torch.full((len(rows),), 1 / len(rows))
        groups.append(RowGroup(divergence=divergence, rows=rows, weight=weight))
    labels = torch.zeros(num_rows, dtype=torch.long)
    return ours(student, teacher, groups=groups, labels=labels, byte_budget=byte_budget).loss


def _parts(scenario: Scenario) -> list[tuple[object, Tensor]]:
    every = torch.arange(sum(scenario.lengths))
    if scenario.loss == "kl":
        return [(ForwardKL(), every)]
    if scenario.loss == "jsd":
        return [(JensenShannon(beta=0.5), every)]
    half = sum(scenario.lengths[: len(scenario.lengths) // 2])
    return [
        (SkewKL(alpha=ALPHA), every[:half]),
        (SkewReverseKL(alpha=ALPHA, detach_mixture=True), every[half:]),
    ]


def _trl_chunked(inputs: Inputs, scenario: Scenario) -> Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    loss: Tensor = _chunked_divergence_loss(
        inputs.hidden,
        inputs.teacher_hidden,
        inputs.weight,
        inputs.teacher_weight,
        scenario.mask,
        _beta(scenario),
    )[0]
    return loss


def _trl_gkd(inputs: Inputs, scenario: Scenario) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher_logits = linear(inputs.teacher_hidden, inputs.teacher_weight)
    loss: Tensor = GKDTrainer.generalized_jsd_loss(
        linear(inputs.hidden, inputs.weight),
        teacher_logits,
        labels=_labels(scenario),
        beta=_beta(scenario),
    )
    return loss


def _liger(inputs: Inputs, scenario: Scenario) -> Tensor:
    labels = _labels(scenario)
    return _liger_rows(
        inputs.hidden.flatten(0, 1), inputs.teacher_hidden.flatten(0, 1), labels, inputs, scenario
    )


def _liger_valid(inputs: Inputs, scenario: Scenario) -> Tensor:
    mask = scenario.mask
    labels = torch.zeros(sum(scenario.lengths), dtype=torch.long)
    return _liger_rows(inputs.hidden[mask], inputs.teacher_hidden[mask], labels, inputs, scenario)


def _liger_rows(
    hidden: Tensor, teacher_hidden: Tensor, labels: Tensor, inputs: Inputs, scenario: Scenario
) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # Not compiled, which would be for a GPU; the hard loss has no weight.
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=_beta(scenario), compiled=False
    )
    value: Tensor = loss(hidden, inputs.weight, teacher_hidden, inputs.teacher_weight, labels.flatten())
    return value


def _dense_distillm2(inputs: Inputs, scenario: Scenario) -> Tensor:
    """The public loss, written from its formula: both divergences on all positions of both halves.

    In log space, so that a probability that underflows does not become NaN.
    """
    log_q, log_p = _dense_log_probs(inputs)
    mixture = torch.logaddexp(log_p + math.log(ALPHA), log_q + math.log(1 - ALPHA))
    skew = (log_p.exp() * (log_p - mixture)).sum(dim=-1)
    mixture = torch.logaddexp(log_p + math.log(1 - ALPHA), log_q.detach() + math.log(ALPHA))
    reverse = (log_q.exp() * (log_q - mixture)).sum(dim=-1)
    return _halves(skew, reverse, scenario)


def _dense_distillm2_probs(inputs: Inputs, scenario: Scenario) -> Tensor:
    """The same in probabilities: the least that a dense form takes, NaN where both underflow."""
    log_q, log_p = _dense_log_probs(inputs)
    p, q = log_p.exp(), log_q.exp()
    skew = (p * (log_p - (ALPHA * p + (1 - ALPHA) * q).log())).sum(dim=-1)
    mixture = (1 - ALPHA) * p + ALPHA * q.detach()
    return _halves(skew, (q * (log_q - mixture.log())).sum(dim=-1), scenario)


def _dense_log_probs(inputs: Inputs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        log_p = linear(inputs.teacher_hidden, inputs.teacher_weight).float().log_softmax(dim=-1)
    return linear(inputs.hidden, inputs.weight).float().log_softmax(dim=-1), log_p


def _halves(skew: Tensor, reverse: Tensor, scenario: Scenario) -> Tensor:
    half = len(scenario.lengths) // 2
    valid = _labels(scenario) != -100
    return skew[:half][valid[:half]].mean() + reverse[half:][valid[half:]].mean()


def _labels(scenario: Scenario) -> Tensor:
    """Return labels of whole sequences, -100 where nothing is trained."""
    prompt = torch.full((len(scenario.lengths), scenario.prompt), -100)
    return torch.cat([prompt, torch.where(scenario.mask, 0, -100)], dim=1)


def _beta(scenario: Scenario) -> float:
    return {"kl": 0.0, "jsd": 0.5}[scenario.loss]


PEERS: dict[str, Callable[[Inputs, Scenario], Tensor]] = {
    "trl_chunked": _trl_chunked,
    "trl_gkd": _trl_gkd,
    "liger": _liger,
    "liger_valid": _liger_valid,
    "dense_distillm2": _dense_distillm2,
    "dense_distillm2_probs": _dense_distillm2_probs,
}
READS_PROMPTS = ("trl_gkd", "liger", "dense_distillm2", "dense_distillm2_probs")


def step_of(variant: str) -> Callable[[Inputs, Scenario], Tensor]:
    """Return the function of a peer, or of ours at a budget in MiB, as in "ours_256"."""
    if not variant.startswith("ours_"):
        return PEERS[variant]
    budget = int(variant.removeprefix("ours_")) * 2**20
    return lambda inputs, scenario: _ours(inputs, scenario, budget)


def random_directions() -> Tensor:
    return torch.randn(
        STUDENT_WIDTH, DIRECTIONS, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )


def oracle(inputs: Inputs, scenario: Scenario) -> dict[str, Tensor]:
    """Return loss and gradients from the formulas in probabilities, on full logits, all in float64.

    The gradient of the weight is given by its products with a few random directions: as good for a relative
    error, and not 600 MB.
    """
    mask = scenario.mask
    hidden, teacher_hidden = inputs.hidden.detach()[mask].double(), inputs.teacher_hidden[mask].double()
    logits = _float64_logits(hidden, inputs.weight).requires_grad_()
    q, p = logits.softmax(-1), _float64_logits(teacher_hidden, inputs.teacher_weight).softmax(-1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    if scenario.loss == "kl":
        loss = kl(p, q).mean()
    elif scenario.loss == "jsd":
        loss = (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)).mean() / 2
    else:
        half = sum(scenario.lengths[: len(scenario.lengths) // 2])
        skew = kl(p, ALPHA * p + (1 - ALPHA) * q)[:half]
        loss = skew.mean() + kl(q, (1 - ALPHA) * p + ALPHA * q.detach())[half:].mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    hidden_gradient = torch.zeros_like(hidden)
    for part in torch.arange(VOCABULARY).split(2**14):
        hidden_gradient += gradient[:, part] @ inputs.weight.detach()[part].double()
    return {
        "loss": loss.detach(),
        "hidden": hidden_gradient,
        "weight": gradient.T @ (hidden @ random_directions()),
    }


def _float64_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    parts = weight.detach().split(2**14)
    return torch.cat([hidden @ part.double().T for part in parts], dim=1)


def errors(inputs: Inputs, scenario: Scenario, loss: Tensor, expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative errors of loss and gradients."""
    assert inputs.hidden.grad is not None
    window = inputs.hidden.grad[:, -max(scenario.lengths) :]
    found = {"loss": loss.detach().double(), "hidden": window[scenario.mask].double()}
    if not scenario.frozen:
        assert inputs.weight.grad is not None
        found["weight"] = torch.cat(
            [part.double() @ random_directions() for part in inputs.weight.grad.split(2**14)]
        )
    return {
        name: float((value - expected[name]).norm() / expected[name].norm()) for name, value in found.items()
    }
