"""The table of methods in configs/README.md: what it says to type is a run."""

import shlex
from typing import get_args

import pytest

from vlm_distill.config import asset_folder
from vlm_distill.losses import KnownObjective
from vlm_distill.runs.config import load_run

README = (asset_folder("configs") / "README.md").read_text(encoding="utf-8")


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """Return per method the overrides for every config and those for easy_vqa alone."""
    table = README.partition("| method | what it trains |")[2].partition("\n\n")[0]
    cells = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {name: (shlex.split(general), shlex.split(own)) for name, _, general, own in cells}


METHODS = rows()


def test_every_objective_has_a_row() -> None:
    assert sorted(METHODS) == sorted(config().kind for config in get_args(KnownObjective))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_makes_a_run_of_that_method_of_images_and_of_text(method: str) -> None:
    general, own = METHODS[method]
    runs = load_run("easy_vqa", [*general, *own]), load_run("smollm2_text", general)
    for run in runs:
        assert run.objective is not None
        assert run.objective.kind == method
        assert run.train is not None
        needs_validation = run.objective.build().source.needs_validation
        assert run.train.evaluate_every is not None or not needs_validation


@pytest.mark.parametrize("line", [one for one in README.splitlines() if one.startswith("vlm-distill run ")])
def test_a_command_of_the_readme_names_a_config_and_decodes(line: str) -> None:
    _, _, name, *overrides = shlex.split(line, comments=True)
    assert load_run(name, overrides).rounds > 0
