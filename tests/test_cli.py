import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_distill.cli import VERBS, main, parser
from vlm_distill.errors import AdapterError, ConfigError
from vlm_distill.runs.config import load_run


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `code`."""
    program = (
        f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_the_package_loads_no_torch() -> None:
    assert not {"torch", "transformers", "pydantic"} & loaded_after("import vlm_distill")


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"from vlm_distill.cli import main\ntry:\n    main({arguments})\nexcept SystemExit as end:"
    code += "\n    assert end.code == 0"
    assert not {"torch", "transformers", "pydantic", "numpy"} & loaded_after(code)


def test_ls_loads_no_torch_and_lists_what_is_shipped_with_its_purpose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "torch" not in loaded_after("from vlm_distill.cli import main\nmain(['ls'])")
    assert main(["ls", "tasks"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tasks:")
    assert "easy-VQA test split" in printed
    assert "suites:" not in printed


MISTAKES = ["train.learning_rat=1", "train.epochs=fast", "objective.kind=kdd", "student.build.vision=ViT"]


@pytest.mark.parametrize("verb", ["run", "check", "cache"])
def test_a_mistake_in_a_config_is_answered_without_torch_as_decoding_it_would(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [verb, "easy_vqa", *MISTAKES]
    code = f"from vlm_distill.cli import main\nassert main({arguments}) == 2"
    assert not {"torch", "transformers", "numpy"} & loaded_after(code)
    assert main(arguments) == 2
    with pytest.raises(ConfigError) as caught:
        load_run("easy_vqa", MISTAKES)
    assert capsys.readouterr().err == f"vlm-distill: error: {caught.value}\n"


def test_an_unknown_suite_is_answered_without_torch() -> None:
    code = "from vlm_distill.cli import main\nassert main(['eval', 'model', '--suite', 'easy_vqq']) == 2"
    assert "torch" not in loaded_after(code)


@pytest.mark.parametrize(
    "arguments", [[], ["runn"], ["eval", "m"], ["eval", "m", "--suite", "s", "--limit", "0"]]
)
def test_a_wrong_command_line_ends_with_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(arguments)
    assert caught.value.code == 2


def test_an_interrupt_says_that_the_command_continues(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str, overrides: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_distill.runs.config.load_run", interrupted)
    assert main(["run", "easy_vqa"]) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["report", "folder"], "vlm-distill: interrupted\n"),
        (["export", "folder", "target"], "vlm-distill: interrupted\n"),
        (["check", "easy_vqa"], "vlm-distill: interrupted\n"),
        (["cache", "easy_vqa"], "vlm-distill: interrupted; the same command continues where it stopped\n"),
        (
            ["eval", "m", "--suite", "easy_vqa"],
            "vlm-distill: interrupted; the same command continues where it stopped\n",
        ),
    ],
)
@pytest.mark.parametrize("turned_into", [None, ImportError, AdapterError])
def test_a_signal_in_any_verb_is_one_line(
    arguments: list[str],
    line: str,
    turned_into: type[Exception] | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            # As a library does that was interrupted inside an import, and as its guard puts it.
            if turned_into is not None:
                raise turned_into("half\nimported") from None
            raise

    monkeypatch.setitem(VERBS, arguments[0], replace(VERBS[arguments[0]], run=interrupted))
    assert main(arguments) == 143
    if turned_into is not None:
        line = f"vlm-distill: interrupted ({turned_into.__name__}: half imported)\n"
    assert capsys.readouterr().err == line
    monkeypatch.setenv("RANK", "1")
    assert main(arguments) == 143
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_inside_the_imports_is_one_line(number: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlm_distill.cli", "check", "easy_vqa", f"output={tmp_path / 'run'}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == code
    assert errors.strip().startswith("vlm-distill: interrupted")
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (["vlm"], "engine.kind: unknown kind 'vlm'; did you mean 'vllm'?"),
        (["vllm", "dtyp=float32"], "engine.dtyp: unknown key; did you mean 'dtype'?"),
        (["vllm", "float32"], "float32"),
    ],
)
def test_a_mistake_in_the_engine_of_an_evaluation_is_one_line(
    engine: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "bundled:easy_vqa_teacher", "--suite", "easy_vqa", "--engine", *engine]) == 2
    assert message in capsys.readouterr().err


def test_names_break_out_of_no_line_of_the_log() -> None:
    name = "a\n\x1b[31m\u202eb"
    code = f"""
import logging, sys
from vlm_distill.cli import _show_log
from vlm_distill.runs.folder import print_log
_show_log()
print_log({name!r})
logging.getLogger("vlm_distill.x").info("read %s", {name!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.rstrip("\n").split("\n")
    assert [line.partition(" ")[2] for line in lines] == [r"a\n\x1b[31m\u202eb"] * 2


@pytest.mark.parametrize("limit", ["0", "-1", "٣", "1.5", "", "9" * 5000, "1e3"])
def test_a_limit_is_a_whole_number_above_0(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "model", "--suite", "easy_vqa", "--limit", limit])
    assert len(capsys.readouterr().err.rstrip("\n").splitlines()[-1]) < 300


@pytest.mark.parametrize("path", ["", "a\0b"])
@pytest.mark.parametrize(
    "arguments", [["report"], ["export", "m"], ["eval", "m", "--suite", "s", "--output"]], ids=" ".join
)
def test_no_path_is_a_usage_error(
    arguments: list[str], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, path])
    assert "expected a path, got" in capsys.readouterr().err
