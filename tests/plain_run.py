"""The folder of a run, written by hand: a config with its plan, and results in a few numbers."""

from collections.abc import Mapping
from pathlib import Path

from vlm_distill.config import dump_yaml
from vlm_distill.runs.config import RunConfig
from vlm_distill.runs.evaluator import Compared
from vlm_distill.runs.plan import plan, write_plan
from vlm_distill.state import write_state
from vlm_distill.training.train import Trained

# Names that look like those of other stages.
CONTROLS = (
    {"name": "pound_round", "objective": {"kind": "kd"}, "rounds": 2, "learning_rate": 0.5, "batch_size": 7},
    {"name": "warm_up", "objective": {"kind": "seqkd"}},
)
VALUES = {"token_kl": 0.25, "own_kl": None, "top1": 0.5, "same_answer": 0.125}


def config_of(**changes: object) -> RunConfig:
    stage = {"steps": 2, "learning_rate": 1e-3}
    values = {
        "name": "plain",
        "data": {"recipe": "easy_vqa"},
        "teacher": {"model": "some/teacher"},
        "student": {"model": "some/student"},
        "warmup": {"objective": {"kind": "seqkd"}, "train": stage},
        "rounds": 2,
        "objective": {"kind": "distillm2"},
        "train": stage,
        "controls": CONTROLS,
        "evaluate": {},
        **changes,
    }
    return RunConfig.model_validate(values)


def write_folder(folder: Path, config: RunConfig) -> Path:
    """Write the config and plan of a run; where there is a plan already, the config of the run changes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    write_plan(folder, plan(config))
    return folder


def train(folder: Path, *names: str) -> None:
    for name in names:
        trained = Trained(key="k", steps=2, tokens=20, objective={}, left_out=0, seconds={})
        write_state(folder / name / "stage.json", trained)


def evaluate(folder: Path, *names: str, values: Mapping[str, float | None] = VALUES) -> None:
    for name in names:
        compared = Compared(key="k", values=values, num_tokens=8, num_examples=4, num_without_response=0)
        write_state(folder / "eval" / name / "agreement.json", compared)


def finish(folder: Path) -> Path:
    """Train and measure every student of the config without changes."""
    train(folder, "warmup", "round_1", "round_2", "pound_round_round_1", "pound_round_round_2", "warm_up")
    evaluate(folder, "student", "warm-up", "round_1", "round_2", "pound_round", "warm_up")
    return folder
