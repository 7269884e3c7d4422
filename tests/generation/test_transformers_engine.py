import copy
import dataclasses

import pytest
import torch

from tests.engines import KINDS, engine_of, load_pictures, prompts_of, run_plan
from tests.tiny import fresh, tiny_llava, tiny_text_model
from vlm_distill.files import hash_json
from vlm_distill.generation.decoding import own_suppressed_ids
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.sampling import choose_tokens, row_uniforms
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.records import Example


def recomputed(
    engine: TransformersEngine, one: Example, sampling: Sampling
) -> list[tuple[list[int], list[float]]]:
    """The oracle: row by row, the whole sequence forwarded for every token, no cache and no padding."""
    loaded, uniforms = engine.loaded, row_uniforms([one.id], sampling)
    prompt = loaded.encode([one], [load_pictures(one)])
    rows = []
    for row in range(sampling.num_samples):
        sequence, ids, log_probs = prompt.input_ids, [], []
        for step in range(sampling.max_new_tokens):
            with torch.no_grad():
                logits = loaded.model(input_ids=sequence, **prompt.extras).logits[:, -1]
            allowed = logits.index_fill(
                1, torch.tensor(own_suppressed_ids(loaded), dtype=torch.long), -torch.inf
            )
            chosen = choose_tokens(allowed, uniforms[row : row + 1, step], sampling)
            ids.append(int(chosen))
            log_probs.append(float(logits.log_softmax(dim=-1)[0, chosen]))
            sequence = torch.cat([sequence, chosen[None]], dim=1)
            if ids[-1] in loaded.stop_ids:
                break
        rows.append((ids, log_probs))
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_samples_equal_rows_generated_alone_without_cache(kind: str) -> None:
    engine, sampling = (
        engine_of(kind),
        Sampling(temperature=0.9, top_p=0.9, max_new_tokens=8, num_samples=3, seed=5),
    )
    examples = prompts_of(kind)
    completions = engine.generate(examples, sampling)
    assert [(one.example_id, one.sample_index) for one in completions] == [
        (e.id, i) for e in examples for i in range(3)
    ]
    expected = [row for one in examples for row in recomputed(engine, one, sampling)]
    for one, (ids, log_probs) in zip(completions, expected, strict=True):
        assert list(one.token_ids) == ids
        assert one.token_log_probs == pytest.approx(log_probs, abs=1e-4)
    assert {one.finish for one in completions} == {"stop", "length"}
    assert len({one.token_ids for one in completions}) > len(examples)


@pytest.mark.parametrize("kind", KINDS)
def test_responses_do_not_depend_on_the_batch_size(kind: str) -> None:
    examples, sampling = prompts_of(kind), Sampling(max_new_tokens=7, num_samples=2, seed=3)
    small, large = (run_plan(engine_of(kind, batch_size=size), examples, sampling) for size in (1, 64))
    assert small.keys() == large.keys()
    for key, one in small.items():
        assert dataclasses.replace(one, token_log_probs=None) == dataclasses.replace(
            large[key], token_log_probs=None
        )
        assert one.token_log_probs == pytest.approx(large[key].token_log_probs, abs=1e-4)


def test_other_seeds_and_more_samples_change_only_what_they_should() -> None:
    engine, examples = engine_of("text"), prompts_of("text")
    two = run_plan(engine, examples, Sampling(max_new_tokens=6, num_samples=2))
    one = run_plan(engine, examples, Sampling(max_new_tokens=6))
    other = run_plan(engine, examples, Sampling(max_new_tokens=6, seed=1))
    assert all(two[key].token_ids == response.token_ids for key, response in one.items())
    assert any(other[key].token_ids != response.token_ids for key, response in one.items())


def test_the_stop_token_is_kept_in_the_ids_and_not_in_the_text() -> None:
    engine = engine_of("text")
    completions = run_plan(engine, prompts_of("text"), Sampling(max_new_tokens=12, num_samples=4)).values()
    for one in completions:
        stops = [token_id for token_id in one.token_ids if token_id in engine.loaded.stop_ids]
        if one.finish == "stop":
            assert stops == [one.token_ids[-1]]
        else:
            assert not stops
        shown = one.token_ids[:-1] if one.finish == "stop" else one.token_ids
        assert one.text == engine.loaded.tokenizer.decode(list(shown), skip_special_tokens=True)
        assert len(one.token_log_probs) == len(one.token_ids)


def test_a_stop_string_ends_a_row_at_the_token_that_completes_it() -> None:
    engine, examples = engine_of("text", loaded=tiny_text_model()), prompts_of("text")
    free = run_plan(engine, examples, Sampling(max_new_tokens=12, num_samples=2))
    text = free["0", 0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = run_plan(
        engine, examples, Sampling(max_new_tokens=12, num_samples=2, stop=(stop, "never in there"))
    )
    assert stopped["0", 0].finish == "stop"
    for key, one in stopped.items():
        if stop not in free[key].text:
            assert dataclasses.replace(one, token_log_probs=None) == dataclasses.replace(
                free[key], token_log_probs=None
            )
            continue
        assert one.text == free[key].text.split(stop)[0]
        assert one.token_ids == free[key].token_ids[: len(one.token_ids)]
        decode = engine.loaded.tokenizer.decode
        assert stop in decode(list(one.token_ids), skip_special_tokens=True)
        assert stop not in decode(list(one.token_ids[:-1]), skip_special_tokens=True)


def test_the_prompt_hash_ignores_padding() -> None:
    engine, examples = engine_of("llava"), prompts_of("llava")
    for one in engine.generate(examples, Sampling(max_new_tokens=1)):
        alone = next(e for e in examples if e.id == one.example_id)
        ids = engine.loaded.encode([alone], [load_pictures(alone)]).input_ids[0].tolist()
        assert one.prompt_ids_hash == hash_json(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_groups_similar_lengths_longest_first(kind: str) -> None:
    engine, examples = engine_of(kind, batch_size=4), prompts_of(kind)
    plan = engine.plan(examples, Sampling(num_samples=2))
    assert [len(batch) for batch in plan] == [2, 2, 2]
    order = [index for batch in plan for index in batch]
    assert sorted(order) == list(range(len(examples)))
    lengths = [engine.loaded.encode([e], [load_pictures(e)]).input_ids.shape[1] for e in examples]
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert engine.plan(examples, Sampling(num_samples=2)) == plan


def test_a_prompt_that_does_not_fit_with_its_answer_is_left_out_of_the_plan() -> None:
    engine, examples = engine_of("llava"), prompts_of("llava")
    lengths = [engine.loaded.encode([e], [load_pictures(e)]).input_ids.shape[1] for e in examples]
    room = engine.loaded.model.config.text_config.max_position_embeddings
    sampling = Sampling(max_new_tokens=room - sorted(lengths)[2])
    planned = sorted(i for batch in engine.plan(examples, sampling) for i in batch)
    assert planned == [i for i, length in enumerate(lengths) if length <= sorted(lengths)[2]]


def test_generation_leaves_training_modes_as_they_were() -> None:
    model = copy.deepcopy(tiny_llava().model).train()
    model.model.vision_tower.eval()
    before = [module.training for module in model.modules()]
    engine = engine_of("llava", loaded=dataclasses.replace(tiny_llava(), model=model))
    engine.generate(prompts_of("llava")[:2], Sampling(max_new_tokens=2))
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before


def test_rows_with_logits_that_are_not_finite_are_aborted() -> None:
    model = copy.deepcopy(tiny_text_model().model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = torch.nan
    engine = engine_of("text", loaded=dataclasses.replace(tiny_text_model(), model=model))
    completions = engine.generate(prompts_of("text"), Sampling(max_new_tokens=3, num_samples=2))
    assert {one.finish for one in completions} == {"aborted"}
    assert {one.token_ids for one in completions} == {()}


def test_an_image_placeholder_is_never_generated() -> None:
    loaded = fresh(tiny_llava())
    placeholder = loaded.model.config.image_token_id
    assert loaded.tokenizer.decode([placeholder]) == "<image>"
    # Without the hint that built students carry, as in a checkpoint from elsewhere.
    loaded.model.generation_config.suppress_tokens = None
    loaded.model.lm_head = torch.nn.Linear(16, loaded.model.lm_head.weight.shape[0])
    with torch.no_grad():
        loaded.model.lm_head.bias[placeholder] = 100.0
        loaded.model.lm_head.bias[list(loaded.stop_ids)] = -100.0
    for sampling in (Sampling(temperature=0, max_new_tokens=4), Sampling(max_new_tokens=4, top_p=0.9)):
        completions = engine_of("llava", loaded=loaded).generate(prompts_of("llava"), sampling)
        assert all(placeholder not in one.token_ids for one in completions)
        assert all(len(one.token_ids) == 4 for one in completions)


def test_ids_that_the_other_model_cannot_read_are_never_generated() -> None:
    engine, sampling = engine_of("text"), Sampling(temperature=0, max_new_tokens=4)
    before = {
        token for one in run_plan(engine, prompts_of("text"), sampling).values() for token in one.token_ids
    }
    # An id behind the output layer is no id of this model: nothing to forbid.
    restricted = dataclasses.replace(engine, suppressed_ids=(*sorted(before), 10**6))
    after = {
        token
        for one in run_plan(restricted, prompts_of("text"), sampling).values()
        for token in one.token_ids
    }
    assert not before & after
