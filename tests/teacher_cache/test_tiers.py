"""Tiers of the teacher cache: what is kept of a teacher gives it back, at the size that is announced."""

from typing import get_args

import pytest
import torch

from vlm_distill.batches import Head
from vlm_distill.errors import ConfigError
from vlm_distill.losses import DPO, GKD, KD, TAID, DistiLLM2, IdRange, Rows, SeqKD
from vlm_distill.losses.row_blocks import TeacherRows
from vlm_distill.teacher_cache import tiers
from vlm_distill.teacher_cache.tiers import TIERS, CacheConfig, TierName, require_tier, tier_of

NUM_ROWS, VOCABULARY, WIDTH = 7, 13, 6
SETTINGS = [
    *(CacheConfig(tier=name, k=4) for name in TIERS),
    CacheConfig(dtype="bfloat16"),
    CacheConfig(tier="top_k"),
]
every_tier = pytest.mark.parametrize("config", SETTINGS, ids=lambda one: f"{one.tier}-{one.dtype}-{one.k}")


def teacher() -> tuple[Rows, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = Head(weight=torch.randn(VOCABULARY, WIDTH, generator=generator))
    hidden = torch.randn(NUM_ROWS, WIDTH, generator=generator)
    return Rows(hidden=hidden, head=head, compared=IdRange(stop=12)), torch.arange(NUM_ROWS)


def test_every_name_of_the_config_is_a_tier() -> None:
    assert set(get_args(TierName)) == set(TIERS)


@every_tier
def test_what_is_kept_gives_the_log_probabilities_of_the_labels_back(config: CacheConfig) -> None:
    rows, labels = teacher()
    tier = tier_of(config)
    found = tier.rows(tier.keep(rows, labels), rows.head, rows.compared)
    assert isinstance(found, TeacherRows)
    expected = rows.chunk(slice(None)).logits().log_softmax(dim=1)[labels, labels]
    tolerance = 2e-2 if config.dtype == "bfloat16" else 1e-6
    block = found.chunk(slice(2, 6)).block(slice(1, 3))
    torch.testing.assert_close(block.labels(labels[3:5]), expected[3:5], rtol=0, atol=tolerance)


@every_tier
def test_the_announced_size_is_that_of_the_tensors(config: CacheConfig) -> None:
    rows, labels = teacher()
    tier = tier_of(config)
    # Without a restriction, as the announcement counts.
    whole = Rows(hidden=rows.hidden, head=rows.head)
    num_bytes = sum(tensor.nbytes for tensor in tier.keep(whole, labels).values())
    assert num_bytes == NUM_ROWS * tier.bytes_per_token(rows.head, dtype=rows.hidden.dtype)


@every_tier
def test_chunks_change_nothing(config: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = teacher()
    tier = tier_of(config)
    once = tier.keep(rows, labels)
    monkeypatch.setattr(tiers, "LOGIT_BYTES", 1)
    by_row = tier.keep(rows, labels)
    assert once.keys() == by_row.keys()
    for name, value in once.items():
        torch.testing.assert_close(by_row[name], value)


def test_the_key_tells_apart_what_gives_other_tensors() -> None:
    keys = [tier_of(config).key([0, 12]) | {"tier": config.tier} for config in SETTINGS]
    assert len({str(key) for key in keys}) == len(SETTINGS)
    of_all = tier_of(CacheConfig()).key([0, 12])
    assert of_all == tier_of(CacheConfig()).key([0, 13]), "hidden states serve any ids"
    assert tier_of(CacheConfig(tier="sampled")).key([0, 12]) == {"vocabulary": [0, 12]}


FITTING = [
    (SeqKD(), "sampled", None),
    (DPO(reference="teacher"), "sampled", None),
    (DistiLLM2(), "top_k", None),
    (TAID(), "hidden", None),
    (KD(), "sampled", "compares distributions"),
    (DistiLLM2(), "sampled", "compares distributions"),
    (TAID(), "top_k", "lies between all logits"),
    (GKD(), "hidden", "draws responses during training"),
    (GKD(on_policy=0.0), "hidden", None),
]


@pytest.mark.parametrize(("objective", "tier", "problem"), FITTING)
def test_an_objective_that_needs_more_than_the_tier_holds_is_refused(
    objective: object, tier: str, problem: str | None
) -> None:
    if problem is None:
        require_tier(objective.build(), CacheConfig(tier=tier), name=objective.kind)
        return
    with pytest.raises(ConfigError, match=problem):
        require_tier(objective.build(), CacheConfig(tier=tier), name=objective.kind)
