"""A whole evaluation on a small data set: files, predictions, scores, resume, re-scoring, comparison."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.color_task import ANSWERS, ROWS, TOKENIZER, Bench, CountingEngine, scripted, write_bench
from tests.engines import IDENTITY
from tests.scripted_engine import ScriptedEngine
from tests.tiny import tiny_llava
from vlm_distill.errors import DataError, EngineError
from vlm_distill.evaluation.compare import compare
from vlm_distill.evaluation.results import TaskResult, read_result
from vlm_distill.generation.engine import Identity
from vlm_distill.generation.transformers_engine import TransformersEngine


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return write_bench(tmp_path)


def test_scores_are_reported_for_the_whole_set_and_its_subsets(bench: Bench) -> None:
    result = bench.evaluate(scripted())
    everything, open_questions = (result.metrics["exact_match"][name] for name in ("all", "open"))
    # Colours: 1 of 4 ("Red" for red); yes or no: "no." is right thrice, "yes." is wrong for red's "no".
    assert (everything.mean, everything.num_items, everything.num_clusters) == (0.5, 8, 4)
    assert (open_questions.mean, open_questions.num_items, open_questions.num_clusters) == (0.25, 4, 4)
    assert everything.standard_error == 0.0  # one of two right on every image
    none = ("empty", "truncated", "no_response", "unparsed_exact_match")
    assert result.counts == {"examples": 8, "clusters": 4, **dict.fromkeys(none, 0)}


def test_what_is_on_disk_is_what_was_returned(bench: Bench) -> None:
    result = bench.evaluate(scripted())
    assert read_result(bench.folder / "run" / "colors") == result
    values = json.loads((bench.folder / "run" / "colors" / "results.json").read_text())
    assert values["scorers"]["exact_match"]["ignore_punctuation"] is True
    assert values["provenance"]["model_fingerprint"] == "a model"
    assert values["provenance"]["engines"] == [{"kind": "scripted", "version": "1"}]
    assert values["provenance"]["data_counts"] == {"read": 8, "beyond_limit": 0}
    assert values["provenance"]["sampling"]["temperature"] == 0.0
    assert "torch" in values["provenance"]["packages"]
    lines = (bench.folder / "run" / "colors" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in ROWS]


def test_empty_and_truncated_answers_are_wrong_and_counted(bench: Bench) -> None:
    answers = {**ANSWERS, "red-what": [""], "blue-red": ["no " * 40]}
    result = bench.evaluate(scripted(answers))
    assert (result.counts["empty"], result.counts["no_response"], result.counts["truncated"]) == (1, 1, 1)
    assert result.provenance.responses["empty"] == 1
    assert result.counts["examples"] == 8
    assert result.metrics["exact_match"]["all"].mean == 2 / 8


def test_unchanged_predictions_are_not_made_again(bench: Bench) -> None:
    first = bench.evaluate(scripted())
    idle = scripted(budget=0)
    assert bench.evaluate(idle) == first
    assert not idle.asked
    assert any("unchanged" in line for line in bench.log)
    assert bench.evaluate(idle, task=bench.task(version=2)).version == 2


def test_predictions_are_scored_whatever_engine_is_there_now(bench: Bench) -> None:
    first = bench.evaluate(scripted())
    newer = CountingEngine(ScriptedEngine(script=ANSWERS, tokenizer=TOKENIZER, stop_id=1, version="2"))
    assert bench.evaluate(newer) == first
    assert not newer.asked


def test_another_model_prompt_or_limit_is_evaluated_anew(bench: Bench) -> None:
    bench.evaluate(scripted())
    other = scripted()
    changed = dataclasses.replace(IDENTITY, fingerprint="another")
    assert bench.evaluate(other, identity=changed).provenance.model_fingerprint == "another"
    assert len(other.asked) == 8
    bench.evaluate(other, identity=dataclasses.replace(changed, stop_ids=(1, 7)))
    assert len(other.asked) == 16
    again = scripted()
    bench.evaluate(again, limit=4)
    bench.evaluate(again, task=bench.task(prompt="Answer: {{ question }}"), limit=4)
    assert len(again.asked) == 8


def test_changed_references_are_used_at_once(bench: Bench) -> None:
    bench.evaluate(scripted())
    rows = [{**row, "answer": "red"} for row in ROWS]
    (bench.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench.evaluate(scripted()).metrics["exact_match"]["open"].mean == 0.5


def test_an_interrupted_evaluation_continues(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_distill.generation.work.SHARD_SECONDS", 0.0)
    with pytest.raises(EngineError, match="power"):
        bench.evaluate(scripted(budget=4))
    assert not (bench.folder / "run" / "colors" / "results.json").exists()
    rest = scripted()
    assert bench.evaluate(rest) == bench.evaluate(scripted(), run="elsewhere")
    assert len(rest.asked) == 4


def test_a_limit_asks_about_whole_images(bench: Bench) -> None:
    result = bench.evaluate(scripted(), limit=5)
    assert (result.counts["examples"], result.counts["clusters"]) == (4, 2)
    assert result.provenance.data_counts["beyond_limit"] == 4


def test_a_new_metric_scores_old_predictions_without_a_model(bench: Bench) -> None:
    first = bench.evaluate(scripted())
    strict = bench.task(metrics=[{"kind": "exact_match", "name": "strict"}], subsets={})
    idle = scripted(budget=0)
    scored = bench.evaluate(idle, task=strict)
    assert (scored.metrics["strict"]["all"].mean, set(scored.metrics["strict"])) == (1 / 8, {"all"})
    assert scored.provenance == first.provenance
    assert bench.evaluate(idle) == first


def test_a_folder_of_another_version_is_refused_and_nothing_else_is_said(bench: Bench) -> None:
    bench.evaluate(scripted())
    for name in ("results.json", "responses/manifest.json"):
        path = bench.folder / "run" / "colors" / name
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "format": 1, "format_version": 1}))
    with pytest.raises(DataError, match=r"responses/manifest\.json: expected format version 3, got 1"):
        bench.evaluate(scripted())
    assert bench.log == []


def test_samples_that_do_not_belong_to_the_results_are_refused(bench: Bench) -> None:
    folder = bench.folder / "run" / "colors"
    with pytest.raises(DataError, match=r"results\.json: missing"):
        read_result(folder)
    first = bench.evaluate(scripted())
    samples = (folder / "samples.jsonl").read_text()
    (folder / "samples.jsonl").write_text(samples.replace("yes.", "no."))
    with pytest.raises(DataError, match="does not belong to the predictions"):
        read_result(folder)
    (folder / "samples.jsonl").write_text(samples[:-30])
    with pytest.raises(DataError, match=r"does not belong to the predictions|damaged"):
        read_result(folder)
    assert bench.evaluate(scripted()) == first
    assert any("the old result is not used" in line for line in bench.log)


def test_too_few_references_for_a_metric_are_an_error(bench: Bench) -> None:
    with pytest.raises(DataError, match="vqa_accuracy needs at least 4 references, got 1 for 'red-what'"):
        bench.evaluate(scripted(), task=bench.task(metrics=[{"kind": "vqa_accuracy"}]))


def test_two_models_are_compared_on_the_same_questions(bench: Bench) -> None:
    better = {**ANSWERS, "blue-what": ["blue"], "green-what": ["green"]}
    a, b = bench.evaluate(scripted()), bench.evaluate(scripted(better), run="better")
    result = compare(a, b)["exact_match"]
    assert result["all"].difference.mean == 0.25
    assert result["open"].difference.mean == 0.5
    assert result["open"].p_value is not None
    assert 0.1 < result["open"].p_value < 0.3
    assert compare(a, a)["exact_match"]["all"].p_value == 1.0


def test_results_of_other_questions_or_metrics_are_not_compared(bench: Bench) -> None:
    a = bench.evaluate(scripted())
    with pytest.raises(DataError, match="4 that only one model answered"):
        compare(a, bench.evaluate(scripted(), run="some", limit=4))
    with pytest.raises(DataError, match="different metrics"):
        compare(a, bench.evaluate(scripted(), run="b", task=bench.task(metrics=[{"kind": "exact_match"}])))
    with pytest.raises(DataError, match="expected one task"):
        compare(a, bench.evaluate(scripted(), run="c", task=bench.task(version=2)))
    rows = [{**row, "answer": "red"} for row in ROWS]
    (bench.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="'red-red' has other images or references"):
        compare(a, bench.evaluate(scripted(), run="d"))


def test_shuffled_images_ask_the_same_questions_about_other_pictures(bench: Bench) -> None:
    engine = scripted()
    normal = bench.evaluate(engine)
    asked = {example.id: example.images for example in engine.asked}
    engine.asked.clear()
    shuffled = bench.evaluate(engine, shuffle_images=True)
    assert all(asked[example.id] != example.images for example in engine.asked)
    assert {example.id for example in engine.asked} == set(asked)
    assert [sample.cluster for sample in shuffled.samples] == [sample.cluster for sample in normal.samples]
    # This model does not look at pictures, so nothing is lost.
    assert compare(shuffled, normal)["exact_match"]["all"].difference.mean == 0.0
    assert read_result(bench.folder / "run" / "colors") == normal
    assert read_result(bench.folder / "run" / "colors.shuffled_images") == shuffled


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_real_model_is_evaluated_and_batches_do_not_matter(bench: Bench, batch_size: int) -> None:
    model = tiny_llava(0)
    identity = Identity(fingerprint=model.fingerprint, stop_ids=model.stop_ids)

    def results(size: int) -> TaskResult:
        engine = TransformersEngine(
            loaded=model,
            load_images=lambda example: [bench.images.load(image) for image in example.images],
            batch_size=size,
        )
        return bench.evaluate(engine, run=f"batch-{size}", identity=identity)

    assert results(batch_size).samples == results(8).samples
    assert results(8).provenance.model_fingerprint == model.fingerprint
