import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load_file

from tests.state_files import change_state, without_checksum
from tests.tiny import tiny_text_model
from tests.whole_runs import Copy
from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.cli import main
from vlm_distill.errors import AdapterError, ConfigError
from vlm_distill.files import read_json, write_json
from vlm_distill.models.fingerprint import fingerprint
from vlm_distill.models.save import save_model
from vlm_distill.publishing.export import export
from vlm_distill.publishing.model_card import CARD, public_name

# Runs programs in folders, none of which can import this package, and prints what each of them printed.
ALONE = """
import contextlib, io, json, os, sys

sys.modules["vlm_distill"] = None
found = {}
for name, (folder, program) in json.load(sys.stdin).items():
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {"__name__": "__main__"})
    found[name] = printed.getvalue()
print(json.dumps(found))
"""
LOAD = """
from transformers import AutoModelForImageTextToText
model, report = AutoModelForImageTextToText.from_pretrained('.', output_loading_info=True)
print(type(model).__name__, sorted(report['missing_keys']), sorted(report['unexpected_keys']))
"""
TOKEN = "hf_secretsecretsecret"


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished, tmp_path_factory.mktemp("out") / "student", log=print)


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    save_model(tiny_text_model(), tmp_path / "text")
    return tmp_path / "text"


def card_of(folder: Path) -> str:
    return (folder / CARD).read_text()


def snippet_of(folder: Path) -> str:
    return re.search(r"```python\n(.*?)```", card_of(folder), flags=re.DOTALL)[1]


@pytest.fixture(scope="module")
def half(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        finished, tmp_path_factory.mktemp("out") / "half", options=LoadOptions(dtype="bfloat16"), log=print
    )


@pytest.fixture(scope="module")
def text_only_exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    save_model(tiny_text_model(), folder / "model")
    return export(folder / "model", folder / "exported", log=print)


@pytest.fixture(scope="module")
def printed(exported: Path, half: Path, text_only_exported: Path) -> dict[str, str]:
    """Return what is printed where this package cannot be imported: by a load, and by the cards' snippets."""
    programs = {"load": (str(exported), LOAD)} | {
        name: (str(folder), snippet_of(folder) + "print(output.shape[1] > inputs['input_ids'].shape[1])")
        for name, folder in {"images": exported, "half": half, "text": text_only_exported}.items()
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_last_round_is_exported_with_its_weights(finished: Path, exported: Path) -> None:
    ours = load_file(finished / "round_2" / "model" / "model.safetensors")
    theirs = load_file(exported / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {path.name for path in exported.iterdir()} == {
        path.name for path in (finished / "round_2" / "model").iterdir()
    } | {CARD}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in exported.iterdir())
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_it_loads_with_plain_transformers_where_this_package_cannot_be_imported(
    printed: dict[str, str],
) -> None:
    assert printed["load"] == "LlavaForConditionalGeneration [] []\n"


def test_the_snippet_of_the_card_runs_for_images_and_for_text(
    printed: dict[str, str], text_only_exported: Path
) -> None:
    assert printed["images"].splitlines()[-1] == "True"
    assert "AutoModelForCausalLM" in snippet_of(text_only_exported)
    assert printed["text"].splitlines()[-1] == "True"


def test_the_card_has_method_data_scores_and_provenance_of_the_run(finished: Path, exported: Path) -> None:
    card, rows = card_of(exported), read_json(finished / "summary.json")["rows"]
    front = ModelCard(card).data.to_dict()
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "image-text-to-text"
    assert front["tags"] == ["distillation", "vlm-distill", "distillm2"]
    assert "license" not in front
    sections = [line for line in card.splitlines() if line.startswith("#") and "#" not in line[3:]]
    assert [line for line in sections if line.startswith("## ")] == [
        f"## {name}" for name in ("How to use", "Method", "Data", "Scores", "Licence", "Provenance")
    ]
    stages = re.findall(r"^\| (warm-up|round 1|round 2|seqkd) +\|", card, flags=re.MULTILINE)
    assert stages == ["warm-up", "round 1", "round 2"]
    assert "learning_rate: 0.001" in card
    assert "The recipe says: Pictures drawn by a test, CC0. Two questions each." in card
    assert re.search(r"^\| student round 2 .*\| 18 ", card, flags=re.MULTILINE)
    kl = next(row["token_kl"] for row in rows if row["model"] == "round 2")
    assert re.search(rf"^\| KL +\| {kl:.4f} +\| 0.0000 ", card, flags=re.MULTILINE)
    assert re.search(
        r"^\| tiny exact_match +\| \d+\.\d \[.*\] +\| \d+\.\d \[.*\] +\| 10 ", card, re.MULTILINE
    )
    assert read_json(finished / "provenance.json")["teacher"] in card
    assert fingerprint(exported) in card


def test_the_card_names_no_path_of_this_machine(finished: Path, exported: Path) -> None:
    assert str(finished.parent) not in card_of(exported)
    assert "`teacher` (a local model)" in card_of(exported)
    assert public_name("Qwen/Qwen2-7B-Instruct") == "`Qwen/Qwen2-7B-Instruct`"


def test_a_stage_is_chosen_by_its_name_on_disk_or_in_tables(finished: Path, tmp_path: Path) -> None:
    for number, (name, folder) in enumerate(
        {"warm-up": "warmup", "round 1": "round_1", "seqkd": "seqkd"}.items()
    ):
        found = export(finished, tmp_path / str(number), stage=name, log=print)
        assert fingerprint(found) == fingerprint(finished / folder / "model")
        stages = re.findall(r"^\| (warm-up|round 1|round 2|seqkd) +\|", card_of(found), flags=re.MULTILINE)
        assert stages == list(dict.fromkeys(["warm-up", name]))
        assert "student round 2" not in card_of(found)


def test_a_stage_that_does_not_exist_is_an_error_that_names_the_nearest(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"'round_3' is not trained.*did you mean 'round_\d'.*seqkd.*warmup"
    ):
        export(finished, tmp_path / "out", stage="round_3", log=print)
    assert not list(tmp_path.iterdir())


def test_a_run_whose_last_round_is_missing_is_not_exported_by_default(
    finished: Path, copy: Copy, tmp_path: Path
) -> None:
    run = copy(finished)
    (run / "round_2" / "stage.json").unlink()
    with pytest.raises(ConfigError, match="'round_2' is not trained; finish the run"):
        export(run, tmp_path / "out", log=print)


def test_weights_are_rounded_to_another_dtype_and_the_card_says_so(
    finished: Path, half: Path, printed: dict[str, str]
) -> None:
    ours = load_file(finished / "round_2" / "model" / "model.safetensors")
    theirs = load_file(half / "model.safetensors")
    assert all(torch.equal(ours[name].bfloat16(), theirs[name]) for name in ours)
    assert read_json(half / "config.json")["dtype"] == "bfloat16"
    assert "measured before the weights were rounded to bfloat16" in card_of(half)
    assert printed["half"].splitlines()[-1] == "True"


def test_scores_of_other_weights_are_not_shown(finished: Path, copy: Copy, tmp_path: Path) -> None:
    run = copy(finished)
    values = read_json(run / "summary.json")
    for row in values["rows"]:
        row["fingerprint"] = "0" * 64
    change_state(run / "summary.json", rows=values["rows"])
    found = export(run, tmp_path / "out", log=print)
    assert "Not measured: the run has no scores of these weights." in card_of(found)


def test_a_changed_recipe_is_not_quoted(finished: Path, copy: Copy, tmp_path: Path) -> None:
    recipe, changed, run = finished.with_name("recipe.yaml"), tmp_path / "recipe.yaml", copy(finished)
    changed.write_text(recipe.read_text().replace("held_out: 0.25", "held_out: 0.5"))
    config = without_checksum(run / "config.yaml")
    assert str(recipe) in config
    (run / "config.yaml").write_text(config.replace(str(recipe), str(changed)))
    found = export(run, tmp_path / "out", log=print)
    assert "The recipe says" not in card_of(found)


def test_a_model_folder_keeps_the_licence_of_its_card_and_claims_no_method(text_model: Path) -> None:
    (text_model / CARD).write_text(
        "---\nlicense: apache-2.0\nbase_model: some/start\nmetrics: [x]\n---\n# Old\n"
    )
    found = export(text_model, text_model.parent / "copy", log=print)
    front = ModelCard(card_of(found)).data.to_dict()
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "some/start"
    assert front["pipeline_tag"] == "text-generation"
    assert "metrics" not in front
    assert "## Method" not in card_of(found)


def test_a_stage_exported_as_a_model_folder_points_to_its_run(finished: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    export(finished / "round_1" / "model", tmp_path / "out", log=lines.append)
    assert "--stage round_1" in lines[0]


def test_a_folder_with_files_is_never_overwritten_and_an_empty_one_is_filled(text_model: Path) -> None:
    target = text_model.parent / "target"
    target.mkdir()
    export(text_model, target, log=print)
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    with pytest.raises(ConfigError, match="already exists"):
        export(text_model, target, log=print)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_what_is_no_run_and_no_model_is_an_error_and_leaves_nothing(text_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        export(tmp_path / "nothing", tmp_path / "out", log=print)
    with pytest.raises(ConfigError, match="not the folder of a run"):
        export(text_model, tmp_path / "out", stage="round_1", log=print)
    weights = text_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cannot load it"):
        export(text_model, tmp_path / "out", log=print)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_pushing_without_a_token_stops_before_anything_is_written(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(ConfigError, match="no Hugging Face token"):
        export(text_model, tmp_path / "out", push_to="owner/name", log=print)
    with pytest.raises(ConfigError, match="owner/name"):
        export(text_model, tmp_path / "out", push_to="name", log=print)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refusing_hub() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the address of a hub that refuses everything, and what it was asked with which authorisation."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["authorization"]))
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(403)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_push_that_the_hub_refuses_is_one_line_without_the_token(
    text_model: Path,
    tmp_path: Path,
    refusing_hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, asked = refusing_hub
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # huggingface_hub reads these once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    code = main(["export", str(text_model), str(tmp_path / "out"), "--push", "owner/name"])
    printed = capsys.readouterr()
    assert code == 2, printed.err
    last = printed.err.rstrip("\n").splitlines()[-1]
    assert last.startswith("vlm-distill: error: --push owner/name: the hub did not take it")
    assert "hf upload owner/name" in last
    assert TOKEN not in printed.out + printed.err
    assert asked == [("/api/repos/create", f"Bearer {TOKEN}")]
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.keys()
    assert 'name = "owner/name"' in card_of(tmp_path / "out")


def test_a_folder_that_asks_for_trust_gets_none(finished: Path, copy: Copy, tmp_path: Path) -> None:
    run, seen = copy(finished), tmp_path / "seen"
    settings = run / "config.yaml"
    settings.write_text(
        re.sub("trust_remote_code: false", "trust_remote_code: true", without_checksum(settings))
    )
    assert "trust_remote_code: true" in settings.read_text()
    model = run / "round_1" / "model"
    (run / "round_1" / "model.files.json").unlink()
    auto_map = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
    write_json(
        model / "config.json", {**read_json(model / "config.json"), "model_type": "odd", "auto_map": auto_map}
    )
    (model / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(seen)!r}).touch()\nraise ImportError('it ran')\n"
    )
    command = ["export", str(run), str(tmp_path / "out"), "--stage", "round_1"]
    assert main(command) == 2
    assert not seen.exists()
    assert main([*command, "--trust-remote-code"]) == 2  # the other option, with which it does run
    assert seen.exists()
