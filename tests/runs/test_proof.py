"""A run proves its models before it writes anything, keeps the verdicts, and says which it had."""

from pathlib import Path

import pytest

from tests.commands import error_of, run
from tests.tiny import tiny_text_model
from tests.tiny_families import tiny_bert, tiny_jamba
from tests.tiny_run import write_run
from tests.whole_runs import config_of
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.cli import main
from vlm_distill.config import dump_yaml
from vlm_distill.conformance.prove import verdict_on
from vlm_distill.conformance.verdict import CACHE
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.progress import silent
from vlm_distill.runs.config import load_run
from vlm_distill.runs.proof import prove_models, student_uses, teacher_uses
from vlm_distill.runs.provenance import find_provenance


def write_text_run(folder: Path, teacher: LoadedModel, student: LoadedModel) -> Path:
    """Write a run of two text models on prompts without pictures."""
    save_model(teacher, folder / "teacher")
    save_model(student, folder / "student")
    config = write_run(
        folder,
        student={"model": str(folder / "student")},
        warmup=None,
        train={"steps": 1, "batch_size": 4},
        controls=[],
        evaluate=None,
    )
    (folder / "rows.jsonl").write_text('{"id": "1", "q": "What color is it?"}\n')
    columns = {"id": "id", "question": "q"}
    source = {"kind": "files", "paths": [str(folder / "rows.jsonl")], "columns": columns}
    recipe = {"name": "text", "sources": [{"source": source}], "split": {"held_out": 0}}
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    return config


def test_a_student_that_attends_both_ways_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, run(write_text_run(tmp_path, tiny_text_model(), tiny_bert())))
    assert "student: check '" in line
    assert not (tmp_path / "run").exists()


def test_eval_refuses_a_model_that_attends_both_ways_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    save_model(tiny_bert(), tmp_path / "bert")
    arguments = ["eval", str(tmp_path / "bert"), "--suite", str(tmp_path / "suite.yaml")]
    line = error_of(capsys, main([*arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]))
    assert "bert: " in line
    assert not (tmp_path / "out").exists()


def test_measured_facts_reach_the_models_of_a_run(tmp_path: Path) -> None:
    config = load_run(str(write_text_run(tmp_path, tiny_text_model(), tiny_jamba())))
    proof = prove_models(
        config, load_skeleton(str(tmp_path / "teacher")), load_skeleton(str(tmp_path / "student")), silent
    )
    assert proof.teacher is not None
    assert proof.teacher.facts.prefix_sharing
    assert not proof.student.facts.prefix_sharing


def test_checks_made_for_another_use_change_nothing_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "verdicts"))
    config = load_run(str(write_text_run(tmp_path, tiny_text_model(), tiny_text_model(seed=1))))
    student = load_skeleton(str(tmp_path / "student"))
    before = prove_models(config, None, student, silent).student
    verdict_on(student, uses=("lora", "recomputes"), role="student")
    assert prove_models(config, None, student, silent).student.hash == before.hash


def test_uses_are_those_that_the_config_has(tmp_path: Path) -> None:
    path = write_run(tmp_path, vision_cache={"memory_gib": 0, "disk_gib": 0})
    plain = load_run(str(path))
    assert teacher_uses(plain) == ("answers",)
    assert student_uses(plain) == ("answers", "learns", "saves")
    more = load_run(
        str(path),
        ["cache.tier=hidden", "train.gradient_checkpointing=true", "train.trainable.language.kind=lora"],
    )
    assert teacher_uses(more) == ("answers", "caches")
    assert student_uses(more) == ("answers", "learns", "saves", "recomputes", "lora")
    assert "vision_cache" in student_uses(load_run(str(path), ["vision_cache.memory_gib=1"]))


def test_a_run_writes_down_which_verdicts_it_had(finished: Path) -> None:
    found = find_provenance(finished)
    assert found is not None
    assert {*found.proven} == {"teacher", "student"}
    assert all(len(one.verdict) == 64 and not one.is_generic for one in found.proven.values())


def test_check_prints_what_is_known_and_proves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(config_of(finished))
    assert main(["check", config]) == 0
    known = capsys.readouterr().out
    assert "conformance: teacher proven, llava through adapter llava" in known
    assert "prefix sharing measured, exact" in known
    monkeypatch.setenv(CACHE, str(tmp_path / "empty"))
    assert main(["check", config]) == 0
    assert "conformance: student unproven" in capsys.readouterr().out
    assert not (tmp_path / "empty").exists()
