"""What the student is pulled to: every target at one step, and the mixture of TAID by hand."""

from typing import get_args

import pytest
import torch

from vlm_distill.losses import Clock, Interpolated, Linear, OneHot, Target, Teacher

HALF = Clock(step=5, fraction=0.5)
EXAMPLES = {Interpolated: Interpolated(t=Linear(start=0.2, end=0.6))}
every_target = pytest.mark.parametrize(
    "target", [EXAMPLES.get(kind) or kind() for kind in get_args(Target)], ids=lambda target: target.kind
)


@every_target
def test_at_a_step_nothing_changes_any_more_and_log_probs_are_a_distribution(target) -> None:
    fixed = target.at(HALF)
    assert not fixed.schedules
    generator = torch.Generator().manual_seed(0)
    log_q, log_p = (torch.randn(3, 5, generator=generator).log_softmax(-1) for _ in range(2))
    kept = log_q.clone(), log_p.clone()
    torch.testing.assert_close(fixed.log_probs(log_q, log_p).exp().sum(-1), torch.ones(3))
    assert torch.equal(log_q, kept[0])
    assert torch.equal(log_p, kept[1])


def test_a_target_between_the_models_is_the_softmax_of_their_mixed_logits() -> None:
    target = EXAMPLES[Interpolated].at(HALF)
    assert target.t == pytest.approx(0.4)
    q, p = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.1, 0.8]])
    mixed = q**0.6 * p**0.4
    torch.testing.assert_close(target.log_probs(q.log(), p.log()).exp(), mixed / mixed.sum())


def test_only_a_mixture_needs_all_logits_and_only_a_label_no_teacher() -> None:
    assert [kind.mixes_logits for kind in (Teacher, Interpolated, OneHot)] == [False, True, False]
    assert [kind.needs_teacher for kind in (Teacher, Interpolated, OneHot)] == [True, True, False]
