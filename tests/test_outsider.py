"""Parts of another installed package: found by name, loaded when named, and as good as the built-in ones.

The package is outsider/ beside this file, installed into a folder of its own by pip.
"""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.distributions import declare
from tests.installed import command, install
from tests.plain_run import config_of
from tests.tiny import tiny_text_model
from tests.tiny_run import write_run
from tests.whole_runs import once
from vlm_distill.config import dump_yaml, read_yaml
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.recipe import Recipe, prepare
from vlm_distill.data.store import ResponseStore
from vlm_distill.evaluation.task import Task
from vlm_distill.files import read_json
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.runs.plan import plan, read_plan

OUTSIDER = Path(__file__).parent / "outsider"
PACKAGE = Path(__file__).parents[1] / "vlm_distill"
PARTS = ("adapter", "source", "scorer", "divergence", "objective", "engine")
STAGE = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
OBJECTIVE = {"kind": "two_sided", "divergence": {"kind": "hellinger", "scale": 2}, "own": 1}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that pip has installed the package into."""
    return once(tmp_path_factory, "outsider", lambda folder: install(OUTSIDER, folder))


def write_outsiders_run(folder: Path, **changes: object) -> Path:
    """Write a run, recipe, task and models that use every part of the package; return the config."""
    for name, width in (("teacher", 32), ("small", 16)):
        save_model(tiny_text_model(1, hidden_size=width), folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        family = {"model_type": "example_llama", "architectures": ["ExampleLlamaForCausalLM"]}
        (folder / name / "config.json").write_text(json.dumps({**config, **family}))
    settings = {
        "student": {"model": str(folder / "small")},
        "warmup": None,
        "rounds": 1,
        "objective": OBJECTIVE,
        "train": STAGE,
        "generate": {"engine": {"kind": "one_by_one"}, "sampling": {"max_new_tokens": 5}},
        "evaluate": {"suite": str(folder / "suite.yaml"), "agreement_tokens": 5, "shuffle_images": False},
        "controls": [{"name": "hellinger", "objective": {"kind": "kd", "divergence": {"kind": "hellinger"}}}],
    }
    config = write_run(folder, **settings | changes)
    source = {"kind": "sums", "limit": 4}
    recipe = {"name": "sums", "sources": [{"source": source}], "split": {"held_out": 0.25}}
    task = read_yaml(folder / "task.yaml") | {"data": source, "metrics": [{"kind": "first_letter"}]}
    for name, value in {"recipe": recipe, "task": task | {"subsets": {}}}.items():
        (folder / f"{name}.yaml").write_text(dump_yaml(value))
    return config


@pytest.fixture(scope="session")
def finished_elsewhere(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run by the parts of the package."""

    def make(folder: Path) -> None:
        done = command(f"run {write_outsiders_run(folder)} cache.tier=top_k", paths=(installed,))
        assert done.codes == [0], done.said
        assert done.loaded_of("example_parts") == set(PARTS)

    return once(tmp_path_factory, "finished_elsewhere", make) / "run"


def test_a_run_of_outsiders_has_all_that_a_run_of_built_in_parts_has(finished_elsewhere: Path) -> None:
    run = finished_elsewhere
    assert read_yaml(run / "config.yaml")["objective"] == OBJECTIVE
    [trained] = [step for step in read_plan(run) if step.name == "round_1.train"]
    assert trained.settings["objective"] == OBJECTIVE
    logged = [read_log(run / name)[-1] for name in ("round_1", "hellinger")]
    assert 0 < logged[0]["theirs"] < 2
    assert 0 < logged[1]["hellinger"] < 1
    # Both divergences compare distributions, and the teacher was known by its most probable tokens.
    assert (run / "cache" / "teacher").is_dir()
    page = (run / "report.html").read_text()
    assert "teacher&#39;s side" in page
    assert "1 round of two_sided" in page
    [engine] = ResponseStore(run / "responses" / "student_round_1").engines
    assert (engine["kind"], engine["dtype"]) == ("one_by_one", "float32")
    result = read_json(run / "eval" / "round_1" / "tiny" / "results.json")
    assert result["scorers"] == {"first_letter": {"kind": "first_letter", "name": "first_letter"}}
    assert result["counts"]["examples"] == 16


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_of_outsiders_is_unchanged_scored_and_exported(
    finished_elsewhere: Path, installed: Path, tmp_path: Path
) -> None:
    config, suite = (finished_elsewhere.with_name(f"{name}.yaml") for name in ("config", "suite"))
    model = finished_elsewhere / "round_1" / "model"
    done = command(
        f"eval {model} --suite {suite} --output {tmp_path / 'scores'} --engine one_by_one",
        f"eval bundled:easy_vqa_teacher --suite {suite} --output {tmp_path} --engine one_by_one",
        f"run {config} cache.tier=top_k",
        f"export {finished_elsewhere} {tmp_path / 'student'}",
        paths=(installed,),
    )
    assert done.codes == [0, 2, 0, 0], done.said
    refused = "--engine: one_by_one reads text alone, and bundled:easy_vqa_teacher reads images"
    assert f"vlm-distill: error: {refused}" in done.said
    [engine] = read_json(tmp_path / "scores" / "tiny" / "results.json")["provenance"]["engines"]
    assert engine["kind"] == "one_by_one"
    assert "tiny first_letter" in done.printed
    assert len([line for line in done.said if "unchanged, the trained student" in line]) == 2
    card = (tmp_path / "student" / "README.md").read_text()
    assert "all sums of two numbers below 4" in card
    assert "two_sided" in card


def test_what_names_no_outsider_loads_none(installed: Path) -> None:
    done = command(
        "--help", "ls", "check easy_vqa objective.kind=two_sidde", "check easy_vqa", paths=(installed,)
    )
    assert (done.codes, done.loaded_of("example_parts")) == ([0, 0, 2, 0], set())
    assert "objective.kind: unknown kind 'two_sidde'; did you mean 'two_sided'?" in done.said[-1]


def test_a_broken_or_doubtful_part_ends_only_the_command_that_names_it(
    installed: Path, tmp_path: Path
) -> None:
    group = "vlm_distill.objectives"
    declare(tmp_path, "broken_parts", group, shattered="no_such_module:Shattered")
    declare(tmp_path, "twin_parts", group, two_sided="example_parts.objective:TwoSided")
    declare(tmp_path, "bold_parts", group, kd="vlm_distill.losses:KD")
    kinds = ("shattered", "two_sided", "kd", "distillm2")
    verbs = [f"check easy_vqa 'objective={{kind: {kind}}}'" for kind in kinds]
    done = command(*verbs, paths=(installed, tmp_path))
    assert (done.codes, done.loaded_of("example_parts")) == ([2, 2, 0, 0], set())
    said = [line.partition("easy_vqa.yaml: ")[2] or line for line in done.said]
    assert said == [
        f"objective: broken_parts 0.3 ({group}: shattered) cannot be loaded: ModuleNotFoundError: "
        "No module named 'no_such_module'; mend or uninstall it",
        f"objective: {group}: 'two_sided' is brought by example-parts 0.1 and twin_parts 0.3: uninstall one "
        "of them",
        f"bold_parts 0.3 ({group}: kd) takes the place of the built-in kd",
    ]


def test_every_part_is_taken_as_an_object_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OUTSIDER)
    parts = {name: import_module(f"example_parts.{name}") for name in PARTS}
    sums, hellinger = parts["source"].Sums(limit=3), parts["divergence"].Hellinger(scale=2.0)
    recipe = Recipe(name="sums", sources=[RecipeSource(source=sums)])
    assert len(prepare(recipe, tmp_path / "data", log=lambda _: None).train) == 9
    task = Task(
        name="sums", version=1, data=sums, prompt="{{ question }}", metrics=(parts["scorer"].FirstLetter(),)
    )
    assert task.hash() != task.model_copy(update={"data": parts["source"].Sums(limit=4)}).hash()
    objective, engine = parts["objective"].TwoSided(divergence=hellinger, own=1.0), parts["engine"].OneByOne()
    run = config_of(objective=objective, generate={"engine": engine})
    assert run.generate.engine is engine
    assert run.model_dump(mode="json")["generate"]["engine"] == {"kind": "one_by_one"}
    assert run.model_dump(mode="json")["objective"] == OBJECTIVE
    [trained] = [step for step in plan(run) if step.name == "round_1.train"]
    assert trained.settings["objective"] == OBJECTIVE
    save_model(tiny_text_model(), tmp_path / "llama")
    family = parts["adapter"].EXAMPLE_LLAMA
    assert load_model(str(tmp_path / "llama"), adapter=family).adapter is family


def test_the_guide_shows_the_package_as_it_is() -> None:
    guide = (OUTSIDER.parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    # Families have a page and an example of their own.
    others = [name for name in PARTS if name != "adapter"]
    assert shown == [
        (OUTSIDER / "example_parts" / f"{name}.py").read_text(encoding="utf-8") for name in others
    ]
    [declared] = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    assert (OUTSIDER / "pyproject.toml").read_text(encoding="utf-8").endswith(declared)
    groups = re.findall(r'entry-points."vlm_distill\.(\w+)"', declared)
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert sorted(groups) == sorted(set(re.findall(r'"vlm_distill\.(\w+s)"', sources)))
