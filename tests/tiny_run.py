"""A whole run in miniature.

Pictures drawn here, a tiny teacher on disk, recipe, task, suite and config in a folder.
"""

import json
from pathlib import Path

from tests.tiny import LANGUAGE, picture, tiny_llava
from vlm_distill.config import dump_yaml
from vlm_distill.models.save import save_model

COLORS = ("red", "green", "blue", "teal", "black", "gray", "brown", "yellow", "white", "pink", "navy", "lime")
QUESTIONS = ("What color is the shape?", "Is there a red circle in the image?")
STAGE = {
    "steps": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 2,
}


def write_rows(folder: Path, name: str, colors: tuple[str, ...]) -> Path:
    """Write one picture a colour and a JSONL file with two questions each; return the file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for color in colors:
        picture(color).save(folder / "images" / f"{name}_{color}.png")
        for number, question in enumerate(QUESTIONS):
            answer = color if number == 0 else "no"
            rows.append(
                {
                    "id": f"{name}-{color}-{number}",
                    "q": question,
                    "a": answer,
                    "image": f"images/{name}_{color}.png",
                }
            )
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files_source(path: Path) -> dict[str, object]:
    columns = {"id": "id", "question": "q", "references": "a", "image": "image"}
    return {"kind": "files", "paths": [str(path)], "columns": columns}


def write_run(folder: Path, **changes: object) -> Path:
    """Write all that a run needs into `folder`; return the config, whose top-level keys `changes` replace."""
    train, test = write_rows(folder, "train", COLORS), write_rows(folder, "test", COLORS[:5])
    recipe = {"name": "tiny", "sources": [{"source": files_source(train)}], "split": {"held_out": 0.25}}
    task = {
        "name": "tiny",
        "version": 1,
        "data": files_source(test),
        "prompt": "{{ question }}",
        "output": {"kind": "generate", "max_new_tokens": 4},
        "metrics": [{"kind": "exact_match"}],
        "subsets": {"open": {"references_not_in": ["yes", "no"]}},
        "cluster_by": "image",
        "verified": True,
    }
    suite = {"name": "tiny", "tasks": [str(folder / "task.yaml")]}
    if not (folder / "teacher").exists():
        save_model(tiny_llava(1, hidden_size=32), folder / "teacher")
    config = {
        "name": "tiny",
        "output": str(folder / "run"),
        "device": "cpu",
        "data": {"recipe": str(folder / "recipe.yaml")},
        "teacher": {"model": str(folder / "teacher")},
        "student": {
            "build": {"vision": {"from": "teacher"}, "language": LANGUAGE, "vision_feature_layer": -1}
        },
        "warmup": {"objective": {"kind": "seqkd"}, "train": STAGE},
        "rounds": 2,
        "generate": {
            "engine": {"kind": "transformers", "batch_size": 4},
            "sampling": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 5},
        },
        "objective": {"kind": "distillm2"},
        "train": STAGE,
        "controls": [{"name": "seqkd", "objective": {"kind": "seqkd"}}],
        "evaluate": {"suite": str(folder / "suite.yaml"), "agreement_tokens": 5},
        **changes,
    }
    for name, value in {"recipe": recipe, "task": task, "suite": suite, "config": config}.items():
        (folder / f"{name}.yaml").write_text(dump_yaml(value))
    return folder / "config.yaml"
