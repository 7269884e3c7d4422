"""With which token the labels of a run end, and where the student that learned it stops."""

import json
from pathlib import Path

import pytest

from tests.commands import run
from tests.tiny import fresh, tiny_text_model
from vlm_distill.config import dump_yaml
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model

TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}END\n{% endfor %}"


def trained_on(folder: Path, label: str, *, template: str) -> dict[str, object]:
    """Train one step on one label; return the row of the log."""
    student = fresh(tiny_text_model())
    student.tokenizer.chat_template = template
    # As of models whose list begins with another id, and lacks the one that their template writes.
    student.model.generation_config.eos_token_id = [student.tokenizer.pad_token_id]
    folder.mkdir(exist_ok=True)
    save_model(student, folder / "student")
    (folder / "rows.jsonl").write_text(json.dumps({"question": "What color?", "answer": label}) + "\n")
    train = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1e-3, "log_every": 1}
    config = {
        "name": "labels",
        "output": str(folder / "run"),
        "device": "cpu",
        "data": {"path": str(folder / "rows.jsonl"), "overrides": ["split.held_out=0"]},
        "student": {"model": str(folder / "student")},
        "warmup": {"objective": {"kind": "sft"}, "train": train},
        "rounds": 0,
    }
    (folder / "config.yaml").write_text(dump_yaml(config))
    assert run(folder / "config.yaml") == 0
    return json.loads((folder / "run" / "warmup" / "metrics.jsonl").read_text().splitlines()[-1])


def test_labels_end_once_with_the_end_of_a_turn_and_the_student_is_saved_to_stop_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = TURNS.replace("END", "<|assistant|>")  # no eos token, and in no list
    plain = trained_on(tmp_path / "plain", "red", template=template)
    ended = trained_on(tmp_path / "ended", "red<|assistant|>\n", template=template)
    assert plain["tokens"] == ended["tokens"]
    assert plain["loss"] == ended["loss"]
    assert "shows no end" not in capsys.readouterr().err
    saved = tmp_path / "plain" / "run" / "warmup" / "model"
    end = tiny_text_model().tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert json.loads((saved / "generation_config.json").read_text())["eos_token_id"][0] == end
    assert load_model(str(saved)).stop_ids[0] == end


def test_a_template_that_shows_no_end_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_on(tmp_path, "red", template=TURNS.replace("END", ""))
    assert "shows no end of an answer; they end with <|end|>" in capsys.readouterr().err
