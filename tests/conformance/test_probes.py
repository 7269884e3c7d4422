import pytest

from tests.tiny import tiny_llava, tiny_text_model
from tests.tiny_qwen import tiny_qwen
from vlm_distill.conformance.probes import probe_of
from vlm_distill.conformance.sampling import SAMPLED, complete, with_many_stops


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava, tiny_qwen])
def test_rows_are_of_unequal_lengths_and_leave_sampling_at_different_steps(build) -> None:
    probe = probe_of(build())
    assert len({int(length) for length in probe.prompts.attention_mask.sum(dim=1)}) == 3
    assert len({len(ids) for _, ids in probe.pairs}) > 2
    completions = complete(with_many_stops(probe), SAMPLED)
    assert len({len(one.token_ids) for one in completions}) > 1


def test_responses_are_of_plain_tokens_and_some_end_by_the_stop_token() -> None:
    probe = probe_of(tiny_llava())
    stop_id = probe.loaded.stop_ids[0]
    ids = [token for _, row in probe.pairs for token in row]
    assert ids.count(stop_id) == 2
    assert not {*ids} - {stop_id} & {*probe.loaded.tokenizer.all_special_ids}
    assert len({*ids}) == len(ids) - 1
