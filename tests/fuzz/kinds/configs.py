"""Configs, recipes, tasks and suites with odd values, other syntax, odd overrides and odd prompts."""

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import OUTPUT, Case
from tests.fuzz.damage import damage_bytes, damaged_text, replace_file, write_text
from tests.fuzz.material import take
from tests.fuzz.values import NUMBERS, TEXTS, mutated, odd_value, places
from vlm_distill.config import dump_yaml, read_yaml
from vlm_distill.data.recipe import load_recipe
from vlm_distill.evaluation.task import load_task
from vlm_distill.runs.config import load_run

INPUTS = (
    "teacher",
    "images",
    "train.jsonl",
    "test.jsonl",
    "recipe.yaml",
    "task.yaml",
    "suite.yaml",
    "config.yaml",
    "table.yaml",
)
RUN = ("run", "config.yaml", f"output={OUTPUT}")
CHECK = ("check", "config.yaml", f"output={OUTPUT}")
EVAL = ("eval", "teacher", "--suite", "suite.yaml", "--output", OUTPUT, "--device", "cpu", "--limit", "2")
# An output, and the folder that it means where it can be written.
OUTPUTS = (
    ("''", "runs/tiny"),
    ("' '", " "),
    (".", "."),
    ("7",),
    ("[a]",),
    ("full", "full"),
    ("new/deeper/x", "new/deeper/x"),
    ("full/..", "."),
    ("teacher", "teacher"),
    ("a_file",),
    ("a_file/x",),
    ("loop",),
    ("loop/x",),
    ("~no_such_user/x",),
    ("a\x00b",),
    ("x" * 300,),
    ("/proc/x", "/proc/x"),
    ("/dev/null", "/dev/null"),
    ("/dev/null/x", "/dev/null/x"),
    ('"\\ud800"',),
    ("null", "runs/tiny"),
    ("\u00e9", "\u00e9"),
    ("-x", "-x"),
)
PROMPTS = (
    "{{ question",
    "{% if %}",
    "{{ question | nothing }}",
    "{{ nothing }}",
    "{{ question.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{% for x in range(10 ** 9) %}x{% endfor %}",
    "{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ 10 ** 10 ** 8 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'x' | center(10 ** 9) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'task.yaml' %}",
    "{% import 'os' as os %}",
    "{% set question = none %}{{ question }}",
    "{{ question | list | tojson }}",
    "{{ references }} {{ id }} {{ meta }}",
    "{{ lipsum(n=100000) }}",
    "{{ cycler }} {{ namespace() }}",
    "(" * 500 + "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "",
    " ",
    "<image>",
    "<image><image>{{ question }}",
)


def full_config(folder: Path) -> dict[str, Any]:
    """Return the valid config with every key of its schema."""
    return load_run(str(folder / "config.yaml")).model_dump(mode="json")


def run_values(random: Random, folder: Path, material: Path) -> Case:
    """Put odd values into a run, whose file has every key."""
    take(material, folder, *INPUTS)
    values = mutated(random, full_config(folder), times=random.choice((1, 1, 1, 2)))
    write_text(folder / "config.yaml", dump_yaml(values))
    return Case(commands=(CHECK, RUN))


def recipe_values(random: Random, folder: Path, material: Path) -> Case:
    take(material, folder, *INPUTS)
    values = load_recipe(str(folder / "recipe.yaml")).model_dump(mode="json")
    write_text(folder / "recipe.yaml", dump_yaml(mutated(random, values, times=random.choice((1, 1, 2)))))
    return Case(commands=(CHECK, RUN))


def task_values(random: Random, folder: Path, material: Path) -> Case:
    take(material, folder, *INPUTS)
    values = load_task(str(folder / "task.yaml")).model_dump(mode="json")
    write_text(folder / "task.yaml", dump_yaml(mutated(random, values, times=random.choice((1, 1, 2)))))
    return Case(commands=(CHECK, EVAL))


def suite_values(random: Random, folder: Path, material: Path) -> Case:
    take(material, folder, *INPUTS)
    values = {"name": "tiny", "description": "", "tasks": [{"task": "task.yaml", "limit": None}]}
    write_text(folder / "suite.yaml", dump_yaml(mutated(random, values, times=random.choice((1, 2)))))
    return Case(commands=(CHECK, EVAL))


def syntax(random: Random, folder: Path, material: Path) -> Case:
    """Damage the text of one of the YAML files."""
    take(material, folder, *INPUTS)
    path = folder / random.choice(("config.yaml", "recipe.yaml", "task.yaml", "suite.yaml"))
    match random.choice(("text", "text", "text", "bytes", "bytes", "other")):
        case "text":
            write_text(path, damaged_text(random, path.read_text()))
        case "other":
            replace_file(random, path)
        case _:
            damage_bytes(random, path)
    return Case(commands=(CHECK, random.choice((RUN, EVAL))))


def overrides(random: Random, folder: Path, material: Path) -> Case:
    """Override keys of a run by odd values, and odd keys."""
    take(material, folder, *INPUTS)
    keys = [".".join(map(str, path)) for path in places(full_config(folder)) if path[0] != "output"]
    given = [
        f"{_odd_key(random, random.choice(keys))}={_odd_text(random)}"
        for _ in range(random.choice((1, 1, 2)))
    ]
    return Case(commands=((*CHECK, *given), (*RUN, *given)))


def outputs(random: Random, folder: Path, material: Path) -> Case:
    """Write to places that cannot be written, or that hold other things."""
    take(material, folder, *INPUTS)
    (folder / "a_file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "loop").symlink_to("loop")
    output, *written = random.choice(OUTPUTS)
    return Case(commands=((*RUN[:2], f"output={output}"),), outputs=(*written, OUTPUT))


def prompts(random: Random, folder: Path, material: Path) -> Case:
    """Put odd templates and texts into the prompts of a recipe or a task."""
    take(material, folder, *INPUTS)
    prompt = random.choice((*PROMPTS, random.choice(PROMPTS) + random.choice(TEXTS)))
    if random.random() < 0.5:
        recipe = read_yaml(folder / "recipe.yaml")
        recipe["sources"][0]["prompt"] = prompt
        write_text(folder / "recipe.yaml", dump_yaml(recipe))
        return Case(commands=((*RUN, "evaluate=null"),))
    task = read_yaml(folder / "task.yaml")
    task[random.choice(("prompt", "prompt", "prompt", "system"))] = prompt
    write_text(folder / "task.yaml", dump_yaml(task))
    return Case(commands=(EVAL,))


def objectives(random: Random, folder: Path, material: Path) -> Case:
    """Train with every method that is known, with odd settings of it."""
    take(material, folder, *INPUTS)
    kinds = (
        "seqkd",
        "sft",
        "kd",
        "taid",
        "gkd",
        "dpo",
        "distillm2",
        "imitkd",
        "distillm",
        "simper",
        "on_policy",
        "abkd",
        "akl",
        "nothing",
    )
    value: dict[str, Any] = {"kind": random.choice(kinds)}
    keys = ("divergence", "alpha", "beta", "preset", "share", "weight", "on_policy_fraction", "schedule", "x")
    for key in random.sample(keys, random.randrange(3)):
        value[key] = odd_value(random)
    where = random.choice(("objective", "warmup.objective"))
    given = f"{where}={dump_yaml(value)}" if random.random() < 0.2 else f"{where}={json.dumps(value)}"
    return Case(commands=((*RUN, "evaluate=null", "controls=[]", given),))


def _odd_key(random: Random, key: str) -> str:
    return random.choice(
        (
            key,
            key,
            key,
            key,
            f"{key}.x",
            f"{key}.0",
            key[:-1],
            f".{key}",
            f"{key}.",
            key.replace(".", ".."),
            "",
            "\ud800",
            "0",
        )
    )


def _odd_text(random: Random) -> str:
    pieces = (
        "[",
        "{",
        "&a x",
        "*a",
        "!!x",
        "? ",
        "- ",
        "'",
        "|",
        "# x",
        "\u0661",
        "0x",
        "1_000",
        "1e",
        ".inf",
        "~",
        "[[" * 5_000,
        "9" * 5_000,
    )
    value = random.choice(
        (
            random.choice(TEXTS),
            str(random.choice(NUMBERS[:-2])) if random.random() < 0.9 else "",
            random.choice(pieces),
        )
    )
    return value.replace("\x00", "\\0")
