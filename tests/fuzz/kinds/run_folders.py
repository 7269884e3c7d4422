"""Finished runs in which a file is damaged, odd, gone or something else, and inputs that changed since."""

import shutil
from pathlib import Path
from random import Random

import yaml

from tests.fuzz.case import Case
from tests.fuzz.damage import damage_bytes, damage_json, damaged_text, files_below, replace_file, write_text
from tests.fuzz.kinds.configs import INPUTS
from tests.fuzz.material import RUNS, take
from tests.fuzz.values import mutated, odd_value
from vlm_distill.config import dump_yaml

LONG = "a" * 300
SOURCES = (
    *("empty", "a_file", "nothing", "teacher", ".", "", "/dev/null"),
    *("x\x00y", "~no_such_user", LONG, "bundled:nothing", "\udcff"),
)
TARGETS = ("new", "new/deeper", "a_file", "a_file/x", "empty", "teacher", "", "x\x00y", LONG, "/dev/null/x")
TRAINED = ("warmup", "round_1", "seqkd", "nothing", "", "../x", "teacher", "\x00", "warmup.train", LONG)
SUITES = ("suite.yaml", "easy_vqa", "nothing", "task.yaml", "", "empty", "x\x00")


def bytes_of_state(random: Random, folder: Path, material: Path) -> Case:
    """Flip, cut or empty a file of a finished run."""
    name = _taken(random, folder, material)
    damage_bytes(random, _state_file(random, folder / name))
    return _read(random, name)


def values_of_state(random: Random, folder: Path, material: Path) -> Case:
    """Replace values in a file of JSON or YAML of a finished run."""
    name = _taken(random, folder, material)
    paths = [path for path in files_below(folder / name) if path.suffix in (".json", ".jsonl", ".yaml")]
    path = random.choice([path for path in paths if path.stat().st_size])
    if path.suffix == ".yaml":
        write_text(
            path, dump_yaml(mutated(random, yaml.safe_load(path.read_text()), times=random.choice((1, 2))))
        )
    else:
        damage_json(random, path)
    return _read(random, name)


def text_of_state(random: Random, folder: Path, material: Path) -> Case:
    """Change lines of a text file of a finished run."""
    name = _taken(random, folder, material)
    suffixes = (".json", ".jsonl", ".yaml", ".md", ".jinja", ".html")
    path = random.choice([path for path in files_below(folder / name) if path.suffix in suffixes])
    write_text(path, damaged_text(random, path.read_text()))
    return _read(random, name)


def other_things(random: Random, folder: Path, material: Path) -> Case:
    """Put a directory, a pipe, a link or nothing where a file of a finished run stands."""
    name = _taken(random, folder, material)
    replace_file(random, _state_file(random, folder / name))
    return _read(random, name)


def missing_folders(random: Random, folder: Path, material: Path) -> Case:
    """Remove a folder of a finished run, or put a file in its place."""
    name = _taken(random, folder, material)
    folders = sorted(path for path in (folder / name).rglob("*") if path.is_dir())
    path = random.choice(folders)
    shutil.rmtree(path)
    if random.random() < 0.4:
        path.write_text(random.choice(("", "{}", "no folder")))
    return _read(random, name)


def changed_inputs(random: Random, folder: Path, material: Path) -> Case:
    """Change an input of a finished run, which is then started again."""
    name = _taken(random, folder, material)
    path = folder / random.choice(
        (
            "train.jsonl",
            "test.jsonl",
            "teacher/model.safetensors",
            "teacher/tokenizer.json",
            "recipe.yaml",
            "task.yaml",
            "config.yaml",
            "images/train_red.png",
            "teacher/generation_config.json",
        )
    )
    match path.suffix:
        case ".json" | ".jsonl":
            random.choice((damage_json, damage_bytes))(random, path)
        case ".yaml":
            write_text(path, dump_yaml(mutated(random, yaml.safe_load(path.read_text()))))
        case _:
            damage_bytes(random, path)
    return Case(commands=(("run", "config.yaml", *RUNS[name]),), outputs=(name,))


def evaluations(random: Random, folder: Path, material: Path) -> Case:
    """Damage what an evaluation left, and evaluate again."""
    take(material, folder, *INPUTS, "scored")
    path = _state_file(random, folder / "scored")
    match random.choice(("bytes", "json", "other")):
        case "json" if path.suffix in (".json", ".jsonl"):
            damage_json(random, path)
        case "other":
            replace_file(random, path)
        case _:
            damage_bytes(random, path)
    command = ("eval", "teacher", "--suite", "suite.yaml", "--output", "scored", "--device", "cpu")
    return Case(commands=(command,), outputs=("scored",))


def verbs(random: Random, folder: Path, material: Path) -> Case:
    """Give verbs folders and names that are others than they want."""
    name = _taken(random, folder, material)
    (folder / "a_file").write_text("mine")
    (folder / "empty").mkdir()
    source = random.choice((name, f"{name}/warmup", f"{name}/warmup/model", f"{name}/data", *SOURCES))
    target = random.choice((name, f"{name}/new", *TARGETS))
    stage, suite = random.choice(TRAINED), random.choice(SUITES)
    commands = (
        ("export", source, target),
        ("export", name, "new", f"--stage={stage}"),
        ("report", source),
        ("eval", source, "--suite", suite, "--output", "new", "--device", "cpu", "--limit", "2"),
        ("run", "config.yaml", f"--stage={stage}", *RUNS[name]),
        ("cache", "config.yaml", *RUNS[name]),
        ("check", source),
        ("run", source, f"output={odd_value(random)}".replace("\x00", "")[:300]),
        ("ls", random.choice(("configs", "recipes", "tasks", "suites"))),
    )
    return Case(commands=(random.choice(commands),), outputs=(name, "new"))


def _taken(random: Random, folder: Path, material: Path) -> str:
    name = random.choice(("run", "run", "cached"))
    take(material, folder, *INPUTS, name)
    return name


def _state_file(random: Random, folder: Path) -> Path:
    """Return a file of a folder; those that are many of one sort are not most of the choices."""
    by_sort: dict[tuple[str, str], list[Path]] = {}
    for path in files_below(folder):
        by_sort.setdefault((path.parent.parent.name, path.suffix), []).append(path)
    return random.choice(random.choice(list(by_sort.values())))


def _read(random: Random, name: str) -> Case:
    """Return the commands that read a run folder: to go on with it, or for its report, an export, a score."""
    folders = ("warmup", "round_1", "seqkd")
    again = ("run", "config.yaml", *RUNS[name])
    match random.choice(("run", "run", "run", "report", "export", "eval", "cache")):
        case "report":
            return Case(commands=(("report", name),), outputs=(name,))
        case "export":
            stage = random.choice(((), *(("--stage", one) for one in folders)))
            return Case(commands=(("export", name, "new", *stage),), outputs=("new",))
        case "eval":
            model = f"{name}/{random.choice(folders)}/model"
            options = ("--suite", "suite.yaml", "--output", "new", "--device", "cpu", "--limit", "2")
            return Case(commands=(("eval", model, *options),), outputs=("new",))
        case "cache" if name == "cached":
            return Case(commands=(("cache", *again[1:]),), outputs=(name,))
        case _:
            return Case(commands=(again,), outputs=(name,), summary=f"{name}/summary.json")
