"""Prompts that are too long for a model: left out of every stage and counted, refused where all are."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import error_of, run
from tests.tiny import LANGUAGE, example, picture, tiny_llava
from tests.tiny_run import QUESTIONS, STAGE, write_run
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.data.images import ImageLoader
from vlm_distill.generation.prompts import prompt_lengths
from vlm_distill.models.save import save_model
from vlm_distill.records import Example
from vlm_distill.reporting import write_report
from vlm_distill.runs import context


def positions(*, of_question: int) -> int:
    """Return the positions of one prompt of a tiny run and a response of one token."""
    prompt = example("a", QUESTIONS[of_question], num_images=1)
    return tiny_llava().encode([prompt], [[picture()]]).input_ids.shape[1] + 1


def write(folder: Path, *, student: int, teacher: int = 256, **changes: object) -> Path:
    """Write a run with one-token responses, in which the models have so many positions."""
    save_model(tiny_llava(1, hidden_size=32), folder / "teacher")
    config = json.loads((folder / "teacher" / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = teacher
    (folder / "teacher" / "config.json").write_text(json.dumps(config))
    language = {**LANGUAGE, "max_position_embeddings": student}
    settings = {
        "student": {
            "build": {"vision": {"from": "teacher"}, "language": language, "vision_feature_layer": -1}
        },
        "generate": {"sampling": {"temperature": 0.8, "max_new_tokens": 1}},
        "evaluate": {"agreement_tokens": 1},
        "controls": [],
        **changes,
    }
    return write_run(folder, **settings)


def stage_of(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / "run" / name / "stage.json").read_text())


def test_prompts_beyond_the_students_positions_are_left_out_of_every_stage_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_policy = {"kind": "gkd", "on_policy": 1.0}
    config = write(tmp_path, student=positions(of_question=0), rounds=1, objective=on_policy)
    assert run(config) == 0
    log = capsys.readouterr().err
    # 9 of 12 pictures are trained on, each with a question that fits and a longer one.
    for label in ("warm-up", "round 1"):
        assert f"{label}: 9 of 18 prompts are too long with their responses for the " in log
    for name in ("warmup", "round_1"):
        stage = stage_of(tmp_path, name)
        assert (stage["left_out"], stage["too_long"]) == (9, 9)
    agreement = json.loads((tmp_path / "run" / "eval" / "round_1" / "agreement.json").read_text())
    assert agreement["num_too_long"] == agreement["num_examples"] / 2 == 3
    assert "agreement: 3 answers are too long with their prompts and left out" in log
    report = write_report(tmp_path / "run").read_text()
    assert "of them too long" in report
    assert "Agreement with the teacher" in report


def test_the_teacher_is_never_asked_what_a_student_wrote_beyond_its_positions(tmp_path: Path) -> None:
    on_policy = {"kind": "gkd", "on_policy": 1.0}
    config = write(
        tmp_path,
        student=256,
        teacher=positions(of_question=0),
        rounds=0,
        warmup={"objective": on_policy, "train": STAGE},
        objective=None,
        train=None,
    )
    assert run(config) == 0
    assert stage_of(tmp_path, "warmup")["too_long"] == 9


@pytest.mark.parametrize("kind", ["seqkd", "kd", "sft"])
def test_a_stage_in_which_nothing_fits_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    config = write(
        tmp_path,
        student=8,
        rounds=0,
        evaluate=None,
        objective=None,
        train=None,
        warmup={"objective": {"kind": kind}, "train": STAGE},
    )
    assert "none of the 18 prompts fits into the positions of" in error_of(capsys, run(config))


def test_the_cache_holds_what_fits_the_teacher(tmp_path: Path) -> None:
    kd = {"objective": {"kind": "kd"}, "train": STAGE}
    config = write(
        tmp_path,
        student=positions(of_question=0),
        rounds=0,
        objective=None,
        train=None,
        warmup=kd,
        cache={"tier": "hidden"},
    )
    assert run(config) == 0
    assert stage_of(tmp_path, "warmup")["too_long"] == 9


def test_a_finished_run_is_continued_without_encoding_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, student=256)
    assert run(config) == 0
    counted: list[int] = []

    def count(loaded: LoadedModel, load_images: ImageLoader, examples: list[Example]) -> list[int]:
        counted.append(len(examples))
        return prompt_lengths(loaded, load_images, examples)

    monkeypatch.setattr(context, "prompt_lengths", count)
    assert run(config) == 0
    assert counted == []
    shutil.rmtree(tmp_path / "run" / "warmup")
    assert run(config) == 0
    assert len(counted) == 1
