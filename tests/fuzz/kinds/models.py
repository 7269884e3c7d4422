"""Models of others: damaged files, odd values in their JSON, odd templates, odd tensors."""

import json
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import OUTPUT, Case
from tests.fuzz.damage import damage_bytes, damage_json, damaged_text, files_below, replace_file, write_text
from tests.fuzz.kinds.configs import EVAL, INPUTS, PROMPTS
from tests.fuzz.material import take
from tests.fuzz.values import mutated

ALONE = (
    "teacher=null",
    "rounds=0",
    "controls=[]",
    "objective=null",
    "warmup.objective={kind: sft}",
)
"""The overrides of a run without a teacher."""
FOREIGN = """from pathlib import Path

Path("ran").write_text("code of the model ran")
"""


def json_values(random: Random, folder: Path, material: Path) -> Case:
    """Replace values in one of a model's JSON files."""
    model = _taken(random, folder, material)
    damage_json(random, random.choice(sorted(model.glob("*.json"))))
    return _used(random, model)


def files(random: Random, folder: Path, material: Path) -> Case:
    """Damage a file of a model, or put something else in its place."""
    model = _taken(random, folder, material)
    path = random.choice(files_below(model))
    random.choice((damage_bytes, damage_bytes, replace_file))(random, path)
    return _used(random, model)


def tensors(random: Random, folder: Path, material: Path) -> Case:
    """Change names, shapes, types and places in the header of the weights."""
    model = _taken(random, folder, material)
    path = model / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    changed = json.dumps(mutated(random, header, times=random.choice((1, 2)))).encode()
    length = random.choice((len(changed), len(changed), len(changed), 2**63, 0, len(changed) - 1))
    path.write_bytes(struct.pack("<Q", length) + changed + data[8 + size :])
    return _used(random, model)


def shards(random: Random, folder: Path, material: Path) -> Case:
    """Store the weights as shards whose index is odd."""
    model = _taken(random, folder, material)
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    names = [name for name in json.loads(data[8 : 8 + size]) if name != "__metadata__"]
    shard = "model-00001-of-00001.safetensors"
    weights.rename(model / shard)
    shutil.copy2(model / shard, folder / "outside.safetensors")
    index: dict[str, Any] = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(names, shard)}
    if random.random() < 0.4:
        other = random.choice(
            (
                "../outside.safetensors",
                str(folder / "outside.safetensors"),
                "missing.safetensors",
                "",
                ".",
                "a/b",
                "x\x00",
            )
        )
        index["weight_map"][random.choice(names)] = other
    else:
        index = mutated(random, index, times=random.choice((1, 2)))
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return _used(random, model)


def templates(random: Random, folder: Path, material: Path) -> Case:
    """Change the chat template of a model."""
    model = _taken(random, folder, material)
    path = model / "chat_template.jinja"
    text = path.read_text() if path.exists() else ""
    match random.choice(("damaged", "odd", "before", "named")):
        case "damaged":
            write_text(path, damaged_text(random, text))
        case "odd":
            write_text(path, random.choice(PROMPTS))
        case "before":
            write_text(path, random.choice(PROMPTS) + text)
        case _:
            (model / "additional_chat_templates").mkdir()
            write_text(model / "additional_chat_templates" / "tool.jinja", random.choice(PROMPTS))
    return _used(random, model)


def foreign_code(random: Random, folder: Path, material: Path) -> Case:
    """Bring code of its own, which nobody said may run."""
    model = _taken(random, folder, material)
    path = model / random.choice(("config.json", "tokenizer_config.json", "processor_config.json"))
    values = json.loads(path.read_text()) if path.exists() else {}
    auto = {
        name: f"foreign.{name}"
        for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoModelForCausalLM")
    }
    values |= {"auto_map": auto}
    if random.random() < 0.5:
        values["model_type"] = "foreign"
    path.write_text(json.dumps(values))
    (model / "foreign.py").write_text(FOREIGN)
    return _used(random, model)


def _taken(random: Random, folder: Path, material: Path) -> Path:
    take(material, folder, *INPUTS, "text")
    return folder / random.choice(("teacher", "teacher", "teacher", "text"))


def _used(random: Random, model: Path) -> Case:
    """Return commands that read the model as a part of a run, or as what is evaluated or exported."""
    name = model.name
    given = random.choice((_as_teacher, _as_student, _as_language if name == "text" else _as_teacher))(name)
    run = ("run", "config.yaml", f"output={OUTPUT}", "evaluate=null", *given)
    match random.choice(("run", "run", "eval", "export")):
        case "run":
            return Case(commands=(("check", *run[1:]), run))
        case "eval":
            return Case(commands=((EVAL[0], name, *EVAL[2:]),))
        case _:
            return Case(commands=(("export", name, f"{OUTPUT}/exported"),))


def _as_teacher(name: str) -> tuple[str, ...]:
    return (f"teacher.model={name}",)


def _as_student(name: str) -> tuple[str, ...]:
    return (*ALONE, f"student={{model: {name}}}")


def _as_language(name: str) -> tuple[str, ...]:
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2}
    build = {"vision": vision, "language": {"model": name}, "tokenizer": "language"}
    return (*ALONE, f"student={json.dumps({'build': build})}")
