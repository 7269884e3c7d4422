import copy
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from tests.commands import error_of, run
from tests.distributions import declare, forget
from tests.engines import VLLM_INSTALLED
from tests.scripted_engine import ScriptedEngine
from tests.state_files import change_state
from tests.tiny import tiny_llava
from tests.tiny_run import write_run
from tests.whole_runs import Copy, config_of
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.cli import main
from vlm_distill.conformance.verdict import Verdict
from vlm_distill.data.dataset import open_dataset
from vlm_distill.data.store import ResponseStore
from vlm_distill.evaluation.agreement import Answers, agreement
from vlm_distill.generation.backend import Asked, Wanted
from vlm_distill.generation.engine import Engine
from vlm_distill.losses import ReverseKL
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.runs import pipeline, teacher
from vlm_distill.runs.config import EvaluateConfig, ModelConfig


def test_a_run_measures_teacher_start_warm_up_every_round_and_the_control(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["model"] for row in summary["rows"]] == [
        "teacher",
        "random",
        "warm-up",
        "round 1",
        "round 2",
        "seqkd",
    ]
    for row in summary["rows"]:
        assert row["scores"]["tiny exact_match"]["n"] == 10
        assert row["scores"]["tiny open"]["n"] == 5
        assert (row["token_kl"] is None) == (row["model"] == "teacher")
        assert set(row["image_shuffle_drop"]) == {"tiny"}
    assert {(one["better"], one["than"]) for one in summary["comparisons"]} == {
        ("round 2", other) for other in ("teacher", "random", "warm-up", "round 1", "seqkd")
    }


def test_training_brings_the_student_closer_to_the_teacher(finished: Path) -> None:
    rows = {row["model"]: row for row in json.loads((finished / "summary.json").read_text())["rows"]}
    assert rows["round 2"]["token_kl"] < rows["random"]["token_kl"]
    assert rows["round 2"]["own_kl"] > 0


def test_the_own_kl_is_that_of_the_student_to_its_teacher_on_its_own_answers(finished: Path) -> None:
    teacher = load_model(str(finished.with_name("teacher")))
    student = load_model(str(finished / "round_2" / "model"))
    dataset = open_dataset(finished / "data")
    answers = {one.example_id: one for one in ResponseStore(finished / "eval/round_2/held_out").read()}
    answered = Answers(
        examples=[one for one in dataset.held_out if one.id in answers],
        responses=answers,
        load_images=lambda example: [dataset.images.load(image) for image in example.images],
    )
    found = agreement(student, teacher, answered, batch_size=4, divergence=ReverseKL())
    rows = {row["model"]: row for row in json.loads((finished / "summary.json").read_text())["rows"]}
    assert rows["round 2"]["own_kl"] == pytest.approx(found.token_kl, rel=1e-4)
    assert rows["round 2"]["own_kl"] != pytest.approx(rows["round 2"]["token_kl"], rel=5e-3)


def test_a_control_on_half_the_prompts_a_step_takes_as_many_steps(finished: Path, copy: Copy) -> None:
    folder = copy(finished)
    controls = "controls=[{name: half, objective: {kind: distillm2}, batch_size: 2}]"
    assert run(config_of(finished), controls, f"output={folder}") == 0
    half = json.loads((folder / "half" / "stage.json").read_text())
    seqkd = json.loads((finished / "seqkd" / "stage.json").read_text())
    assert half["tokens"] == pytest.approx(seqkd["tokens"], abs=20)
    assert half["steps"] == pytest.approx(seqkd["steps"], abs=1)


def test_the_control_trains_as_many_tokens_as_the_rounds(finished: Path) -> None:
    tokens = {
        name: json.loads((finished / name / "stage.json").read_text())["tokens"]
        for name in ("round_1", "round_2", "seqkd")
    }
    rounds = tokens["round_1"] + tokens["round_2"]
    # The step that reaches the budget is the last one: at most 4 prompts of 5 tokens more.
    assert rounds <= tokens["seqkd"] <= rounds + 20


def test_the_second_round_has_an_alpha_curriculum_from_the_first(finished: Path) -> None:
    def alphas(name: str, author: str) -> set[float]:
        lines = (finished / name / "metrics.jsonl").read_text().splitlines()
        return {round(json.loads(line)[f"alpha_{author}"], 6) for line in lines}

    assert alphas("round_1", "teacher") == alphas("round_1", "student") == {0.1}
    # Where the mean gap of round 1 is not positive alpha stays as it was: two random models are that close.
    schedules = json.loads((finished / "round_1" / "stage.json").read_text())["objective"]["schedules"]
    for author, term in (("teacher", "skl"), ("student", "srkl")):
        adapts = schedules[f"{term}.skew"]["gap_sum"] > 0
        assert (alphas("round_2", author) != {0.1}) == adapts, author
    assert any(schedules[f"{term}.skew"]["gap_sum"] > 0 for term in ("skl", "srkl"))


def test_the_folder_says_where_everything_came_from(finished: Path) -> None:
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["packages"]["torch"]
    assert len(provenance["teacher"]) == 64
    assert provenance["data_counts"]["read"] == 24
    resolved = yaml.safe_load((finished / "config.yaml").read_text())
    assert resolved["train"]["max_grad_norm"] == 1.0


def test_a_finished_run_does_nothing_again(
    finished: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(finished)
    models = sorted(folder.glob("*/model/model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in models}
    assert len(before) == 4
    assert run(config_of(finished), f"output={folder}") == 0
    assert {path: path.stat().st_mtime_ns for path in models} == before
    assert (folder / "summary.json").read_text() == (finished / "summary.json").read_text()
    assert "round 2: unchanged" in capsys.readouterr().err


def test_a_finished_run_uses_its_responses_whatever_engine_is_named_now(
    finished: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(finished)
    stored = [path for path in sorted((folder / "responses").rglob("*")) if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in stored}
    assert run(config_of(finished), "generate.engine={kind: vllm}", f"output={folder}") == 0
    assert {path: path.stat().st_mtime_ns for path in stored} == before
    assert capsys.readouterr().err.count("stored responses are used") >= 3


@pytest.mark.skipif(VLLM_INSTALLED, reason="vllm is installed")
def test_interrupted_responses_are_kept_where_the_engine_is_missing(
    finished: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(finished)
    manifest = folder / "responses" / "student_round_2" / "manifest.json"
    whole = json.loads(manifest.read_text())
    change_state(manifest, complete=None)
    interrupted = manifest.read_text()
    code = run(config_of(finished), "generate.engine={kind: vllm}", f"output={folder}")
    assert "vllm is not installed" in error_of(capsys, code)
    assert manifest.read_text() == interrupted
    assert run(config_of(finished), f"output={folder}") == 0
    assert "unchanged" in capsys.readouterr().err
    assert json.loads(manifest.read_text()) == whole


def test_what_is_evaluated_may_change_and_what_is_trained_may_not(
    finished: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"output={copy(finished)}"
    assert run(config_of(finished), output, "evaluate.limit=4", "evaluate.shuffle_images=false") == 0
    capsys.readouterr()
    code = run(config_of(finished), output, "train.learning_rate=0.5")
    assert "was started with another config (train.learning_rate changed)" in error_of(capsys, code)


def test_labels_train_a_student_without_a_teacher(tmp_path: Path) -> None:
    build = {"vision": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}}
    language = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokenizer = {"train": {"vocab_size": 300}}
    student = {"build": {**build, "language": language, "tokenizer": tokenizer, "vision_feature_layer": -1}}
    warmup = {
        "objective": {"kind": "sft"},
        "augment": {"flip": True, "shift": 1},
        "train": {"steps": 2, "batch_size": 4},
    }
    absent = {"teacher": None, "rounds": 0, "controls": [], "objective": None, "train": None}
    assert run(write_run(tmp_path, student=student, warmup=warmup, **absent)) == 0
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["random", "warm-up"]


def test_eval_scores_a_saved_student_as_its_run_did(finished: Path, tmp_path: Path) -> None:
    arguments = [
        "eval",
        str(finished / "round_2" / "model"),
        "--suite",
        str(finished.with_name("suite.yaml")),
        "--output",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    scored = json.loads((tmp_path / "summary.json").read_text())["rows"][0]["scores"]
    rows = json.loads((finished / "summary.json").read_text())["rows"]
    assert scored == next(row["scores"] for row in rows if row["model"] == "round 2")


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """An engine that needs no weights."""

    script: Mapping[str, Sequence[str]]
    kind: Literal["scripted"] = "scripted"

    def open(self, asked: Asked) -> AbstractContextManager[Engine]:
        loaded = asked.loaded
        engine = ScriptedEngine(script=self.script, tokenizer=loaded.tokenizer, stop_id=loaded.stop_ids[0])
        return nullcontext(engine)

    def require(self, wanted: Wanted) -> None:
        pass


def test_eval_loads_no_weights_for_answers_that_are_stored_or_that_another_engine_gives(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = str(finished.with_name("suite.yaml"))
    arguments = ["eval", str(finished / "round_2" / "model"), "--suite", suite, "--output", str(tmp_path)]
    shutil.copytree(finished / "eval" / "round_2" / "tiny", tmp_path / "tiny")
    loaded: list[str] = []

    def load(config: ModelConfig, device: str, verdict: Verdict) -> LoadedModel:
        loaded.append(config.model)
        return teacher.load(config, device, verdict)

    monkeypatch.setattr(pipeline, "load", load)
    assert main(arguments) == 0
    assert loaded == []
    assert "stored predictions are scored" in capsys.readouterr().err
    samples = (finished / "eval" / "round_2" / "tiny" / "samples.jsonl").read_text().splitlines()
    engine = Scripted(script={json.loads(line)["id"]: ("red",) for line in samples})
    model = ModelConfig(model=arguments[1])
    evaluate = EvaluateConfig(suite=suite, engine=engine, shuffle_images=False)
    assert "exact_match" in pipeline.evaluate_model(model, evaluate, folder=tmp_path / "other", device="cpu")
    assert loaded == []
    assert main([*arguments, "--shuffle-images"]) == 0
    assert loaded == [arguments[1]]


def test_eval_says_damaged_weights_before_it_reads_the_suite(
    finished: Path, copy: Copy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = copy(finished) / "round_2" / "model", tmp_path / "out"
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    suite = str(finished.with_name("suite.yaml"))
    line = error_of(capsys, main(["eval", str(model), "--suite", suite, "--output", str(out)]))
    assert f"{weights}: damaged (not what was written)" in line
    assert not out.exists()


def test_check_prints_the_resolved_run_and_the_pair_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path)
    assert main(["check", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "max_grad_norm: 1.0" in printed
    assert "route: identical tokenizers" in printed
    assert "4 tokens per probe image" in printed
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "unknown key": (
        ["train.learning_rat=1"],
        "train.learning_rat: unknown key; did you mean 'learning_rate'?",
    ),
    "wrong type": (["train.steps=many"], "train.steps: input should be a valid integer"),
    "missing recipe": (["data.recipe=nowhere.yaml"], "nowhere.yaml: no such file"),
    "missing vllm": (["generate.engine={kind: vllm}"], "vllm is not installed"),
    "missing model": (["teacher.model=/no/such/folder"], "/no/such/folder: no such folder"),
    "unknown bundled model": (["teacher.model=bundled:nothing"], "bundled:nothing: no such bundled model"),
    "a control that would overwrite a stage": (
        ["controls=[{name: warmup, objective: {kind: seqkd}}]"],
        "controls.0.name: names another stage",
    ),
    "a name that leaves the folder": (
        ["controls=[{name: ../../x, objective: {kind: seqkd}}]"],
        "controls.0.name: string should match pattern",
    ),
    "a seed that torch cannot take": (["seed=99999999999"], "seed: input should be less than"),
    "two precisions": (["warmup.train.precision=bf16"], "must be equal in one run"),
    "a device that is not there": (["device=mps"], "mps"),
    "missing suite": (["evaluate.suite=nothing"], "nothing: no such file, and no shipped eval/suites entry"),
}


@pytest.mark.parametrize(("overrides", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_config_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert message in error_of(capsys, run(write_run(tmp_path), *overrides))
    assert not list((tmp_path / "run").glob("*/model"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.trainable={vision: frozen, projector: frozen, language: frozen}",
            "is frozen; let at least one",
        ),
        ("warmup.train.trainable={vision: frozen, projector: frozen, language: frozen}", "let at least one"),
    ],
)
def test_parts_that_cannot_learn_are_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    config = write_run(tmp_path)
    assert message in error_of(capsys, run(config, override))
    assert message in error_of(capsys, main(["check", str(config), override]))
    assert not (tmp_path / "run").exists()


MISSPELT = """
from dataclasses import replace
from vlm_distill.adapters.llava import LLAVA

PARTS = {"vision": ("model.vision_towr.",), "projector": ("model.multi",), "language": ("model.language",)}
ADAPTER = replace(LLAVA, name="bold", parts=PARTS)
"""


@pytest.mark.parametrize("verb", ["check", "run"])
def test_an_installed_family_that_misspells_a_component_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    config = write_run(tmp_path)
    save_model(tiny_llava(0), tmp_path / "student")
    (tmp_path / "misspelt_parts.py").write_text(MISSPELT)
    declare(tmp_path, "misspelt", "vlm_distill.adapters", llava="misspelt_parts:ADAPTER")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    try:
        student = f"student={{model: {tmp_path / 'student'}}}"
        line = error_of(capsys, main([verb, str(config), student, "train.trainable={vision: frozen}"]))
    finally:
        monkeypatch.undo()
        forget()
    assert "parts.vision of family 'bold': expected parameters below 'model.vision_towr.'" in line
    assert "found model.vision_tower, " in line
    assert not (tmp_path / "run").exists()


def test_a_mistake_does_not_bind_the_folder_to_it(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    assert run(config, "data.recipe=nowhere.yaml") == 2
    assert run(config, "evaluate.suite=nowhere.yaml") == 2
    short = ["rounds=0", "controls=[]", "evaluate=null"]
    assert run(config, "warmup.train.steps=1", *short) == 0


def test_a_limit_draws_prompts_from_the_whole_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_run(tmp_path), "data.limit=8", "rounds=0", "controls=[]", "evaluate=null") == 0
    assert "8 of 18 training prompts are used" in capsys.readouterr().err
    answered = ResponseStore(tmp_path / "run" / "responses" / "teacher").read()
    pictures = {response.example_id.rsplit("-", 1)[0] for response in answered}
    assert len(answered) == 8
    assert len(pictures) > 4


def test_authors_and_rounds_draw_different_random_numbers(finished: Path) -> None:
    def answers(name: str) -> list[tuple[int, ...]]:
        return [one.token_ids for one in ResponseStore(finished / "responses" / name).read()]

    first, second = answers("student_round_1"), answers("student_round_2")
    # Six steps hardly move the student, so equal numbers would give mostly equal answers.
    assert sum(a == b for a, b in zip(first, second, strict=True)) < len(first) / 2


def test_mechanical_settings_and_more_rounds_may_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, controls=[], evaluate=None)
    assert run(config, "rounds=1") == 0
    capsys.readouterr()
    assert run(config, "rounds=2", "train.micro_batch_size=1", "generate.engine.batch_size=2") == 0
    printed = capsys.readouterr().err
    assert "round 1: unchanged" in printed
    assert (tmp_path / "run" / "round_2" / "stage.json").is_file()


def frozen_tower() -> dict[str, object]:
    """Return the changes that train projector and language model for a few steps beside a frozen tower."""
    stage = {"steps": 3, "batch_size": 4, "micro_batch_size": 2, "trainable": {"vision": "frozen"}}
    return {"warmup": {"objective": {"kind": "seqkd"}, "train": stage}, "train": stage, "rounds": 1}


def test_a_frozen_tower_of_both_models_runs_once_per_image_in_a_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, **frozen_tower())
    assert run(config) == 0
    # Twelve pictures; those of the task are among them.
    assert "vision cache: 12 images encoded, " in capsys.readouterr().err
    model = tmp_path / "run" / "round_1" / "model" / "model.safetensors"
    trained = model.read_bytes()
    shutil.rmtree(tmp_path / "run" / "round_1")
    assert run(config) == 0
    assert "vision cache: 0 images encoded, " in capsys.readouterr().err
    assert model.read_bytes() == trained


def test_a_run_without_the_vision_cache_ends_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries = []
    for name, overrides in {
        "with": [],
        "without": ["vision_cache.memory_gib=0", "vision_cache.disk_gib=0"],
    }.items():
        config = write_run(tmp_path, output=str(tmp_path / name), **frozen_tower())
        assert run(config, *overrides) == 0
        assert ("vision cache:" in capsys.readouterr().err) == (name == "with")
        assert (tmp_path / name / "vision_features").exists() == (name == "with")
        rows = json.loads((tmp_path / name / "summary.json").read_text())["rows"]
        summaries.append({row["model"]: row["token_kl"] for row in rows[1:]})
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-4)


def test_a_tower_that_learns_or_reads_augmented_images_is_not_cached_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = frozen_tower()
    learning = {**changes["train"], "trainable": {"vision": "full"}}
    # An objective for which the teacher reads the changed images too.
    warmup = {**changes["warmup"], "objective": {"kind": "kd"}, "augment": {"shift": 2}}
    assert run(write_run(tmp_path, **{**changes, "warmup": warmup, "train": learning}, controls=[])) == 0
    printed = capsys.readouterr().err
    assert "warm-up: images are changed at random, so features of images are not kept" in printed
    assert "round 1: the vision tower learns, so features of images are not kept" in printed
    # Twelve by the tower of the teacher and the first student, and by the one that learned those of the task
    # and the held-out ones.
    found = re.search(r"vision cache: (\d+) images encoded", printed)
    assert found is not None
    assert 12 + 5 <= int(found[1]) <= 12 + 5 + 3


def test_a_warm_up_on_own_responses_keeps_them_apart_from_those_of_round_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"steps": 1, "batch_size": 4}
    warmup = {"objective": {"kind": "distillm2"}, "train": stage}
    config = write_run(tmp_path, warmup=warmup, train=stage, controls=[], evaluate=None, rounds=1)
    assert run(config) == 0
    capsys.readouterr()
    assert run(config) == 0
    assert capsys.readouterr().err.count("unchanged") == 5


def test_a_trained_student_stops_where_its_teacher_stops(tmp_path: Path) -> None:
    teacher, student = copy.deepcopy(tiny_llava(1, hidden_size=32)), tiny_llava(2)
    [own] = student.stop_ids
    also = own + 1
    teacher.model.generation_config.eos_token_id = [own, also]
    save_model(teacher, tmp_path / "teacher")
    save_model(student, tmp_path / "student")
    config = write_run(
        tmp_path, student={"model": str(tmp_path / "student")}, rounds=0, controls=[], evaluate=None
    )
    assert run(config, "warmup.train.steps=1") == 0
    assert set(load_model(str(tmp_path / "run" / "warmup" / "model")).stop_ids) == {own, also}


def test_an_unwritable_output_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    (tmp_path / "file").write_text("")
    assert "Not a directory" in error_of(capsys, run(config, f"output={tmp_path / 'file' / 'run'}"))


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml: no such file" in error_of(capsys, main(["run", "nowhere.yaml"]))


def test_a_truncated_image_stops_the_run_by_name_or_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path)
    broken = tmp_path / "images" / "train_teal.png"
    broken.write_bytes(broken.read_bytes()[:60])
    error = error_of(capsys, run(config))
    assert "train-teal-0" in error
    assert not (tmp_path / "run" / "data" / "manifest.json").exists()
    skip = 'data.overrides=["on_bad_row=skip"]'
    assert (
        run(config, skip, f"output={tmp_path / 'skipping'}", "rounds=0", "controls=[]", "evaluate=null") == 0
    )
    counts = json.loads((tmp_path / "skipping" / "provenance.json").read_text())["data_counts"]
    assert counts["bad_image"] == 2


def test_an_empty_recipe_and_duplicate_ids_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path)
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text("")
    assert "no example is left to train on" in error_of(capsys, run(config))
    (tmp_path / "train.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
    assert "'train-red-0'" in error_of(capsys, run(config))


def test_models_whose_tokens_differ_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    other = tiny_llava.__wrapped__(0, tokenizer={"train": {"vocab_size": 270}})
    save_model(other, tmp_path / "other")
    student = f"student={{model: {tmp_path / 'other'}}}"
    assert "token sets do not match" in error_of(capsys, run(config, student))


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    config = write_run(tmp_path)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is running here" in error_of(capsys, run(config))
