"""Where responses come from: choices at given draws, shares over many draws, and the adaptive threshold."""

import json

import pytest

from vlm_distill.errors import ConfigError
from vlm_distill.losses import AdaptiveOffPolicy, Clock, OnPolicy, ResponseSource, Stored

START, HALF = Clock(), Clock(step=5, fraction=0.5)
UNIFORM = [(number + 0.5) / 1000 for number in range(1000)]


def raised(times: int, **options) -> AdaptiveOffPolicy:
    source = AdaptiveOffPolicy(**options)
    for number in range(times + 1):
        source.observe_validation(1.0 + number)
    return source


def shares(source: ResponseSource, clock: Clock, buffered: int) -> dict[str, float]:
    choices = [source.draw(uniform, clock, buffered=buffered) for uniform in UNIFORM]
    return {choice: choices.count(choice) / len(choices) for choice in sorted(set(choices))}


@pytest.mark.parametrize(
    "source", [Stored(), OnPolicy(share=0.3), AdaptiveOffPolicy()], ids=lambda source: source.kind
)
def test_sources_satisfy_the_protocol(source) -> None:
    assert isinstance(source, ResponseSource)
    assert source.needs_validation == isinstance(source, AdaptiveOffPolicy)
    assert (source.capacity > 0) == isinstance(source, AdaptiveOffPolicy)


def test_stored_never_samples() -> None:
    assert shares(Stored(), HALF, 0) == {"stored": 1.0}


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_on_policy_samples_its_share(share: float) -> None:
    assert shares(OnPolicy(share=share), HALF, 0) == {"fresh": share, "stored": 1 - share}


def test_the_ends_of_on_policy_are_exact() -> None:
    assert OnPolicy(share=1.0).draw(1 - 2**-53, START, buffered=0) == "fresh"
    assert OnPolicy(share=0.0).draw(0.0, START, buffered=0) == "stored"
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="expected 0 to 1"):
            OnPolicy(share=share)


def test_adaptive_starts_with_stored_responses_only() -> None:
    assert shares(AdaptiveOffPolicy(), START, 0) == {"stored": 1.0}


def test_adaptive_fills_its_buffer_first_and_then_samples_less_and_less() -> None:
    source = raised(4)
    assert shares(source, HALF, 999) == {"fresh": 0.4, "stored": 0.6}
    assert shares(source, START, 1000) == {"fresh": 0.4, "stored": 0.6}
    assert shares(source, HALF, 1000) == {"buffer": 0.2, "fresh": 0.2, "stored": 0.6}
    assert shares(source, Clock(step=9, fraction=0.9), 1000) == {"buffer": 0.36, "fresh": 0.04, "stored": 0.6}


def test_the_threshold_rises_against_the_loss_of_the_last_rise() -> None:
    source = AdaptiveOffPolicy()
    thresholds = []
    # The first validation is the measure; 1.15 is 0.1 above it, 1.2 not above 1.15, a fall is forgotten.
    for loss in (1.0, 1.05, 1.15, 1.2, 0.5, 1.24, 1.25, 1.3):
        source.observe_validation(loss)
        thresholds.append(source.threshold)
    assert thresholds == [0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2]


def test_the_threshold_ends_at_exactly_one() -> None:
    assert raised(10).threshold == 1.0
    assert raised(25).threshold == 1.0
    assert raised(3, threshold_step=0.4).threshold == 1.0


@pytest.mark.parametrize("rises", [None, 0, 3])
def test_adaptive_state_survives_json(rises: int | None) -> None:
    source = AdaptiveOffPolicy() if rises is None else raised(rises)
    restored = AdaptiveOffPolicy()
    restored.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert restored.state_dict() == source.state_dict()
    for one in (source, restored):
        one.observe_validation(7.0)
    assert restored.threshold == source.threshold


@pytest.mark.parametrize("options", [{"capacity": 0}, {"threshold_step": 0.0}, {"threshold_step": 1.5}])
def test_impossible_buffers_are_config_errors(options: dict) -> None:
    with pytest.raises(ConfigError, match="replay buffer: expected"):
        AdaptiveOffPolicy(**options)
