"""Distillation methods side by side: one warm-up, equal numbers of trained student tokens, several seeds.

    python benchmarks/methods.py easy_vqa --seeds 0 1 2 --output runs/methods
    python benchmarks/methods.py text --seeds 0 1 2 --output runs/methods

A run with `controls` (configs/methods_*.yaml) trains every method from the same student after the warm-up;
this program repeats it with several seeds and prints one line a method: means over seeds with 95 % intervals
(Student's t over seeds), and the difference to the run's own objective, paired by seed. A finished seed is
not run again. Rows go to OUTPUT/NAME.jsonl, the table to standard output.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from vlm_distill.evaluation.measures import MEASURES
from vlm_distill.files import read_json
from vlm_distill.runs.config import RunConfig, load_run
from vlm_distill.runs.pipeline import run
from vlm_distill.runs.plan import ROUNDS, STUDENT, TEACHER, WARMUP, read_plan


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", help="configs/methods_NAME.yaml, or the path of another config with controls")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args(arguments)
    path = options.name if options.name.endswith(".yaml") else f"configs/methods_{options.name}.yaml"
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        folder = options.output / f"{Path(path).stem}_seed{seed}"
        config = load_run(path, [*options.overrides, f"seed={seed}", f"output={folder}"])
        run(config)
        rows += rows_of(config, folder)
    options.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (options.output / f"{Path(path).stem}.jsonl").write_text(lines, encoding="utf-8")
    print(table(rows))


def rows_of(config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    """Return one row per model of a finished run: scores, tokens and seconds of its own stages."""
    rows = []
    steps = [step for step in read_plan(folder) if step.is_planned]
    measured = {step.label: step for step in steps if step.kind == "evaluate"}
    for one in read_json(folder / "summary.json")["rows"]:
        step = measured[one["model"]]
        if step.track == ROUNDS and step.round < step.num_rounds:
            continue
        assert config.objective is not None
        # The stages behind a model: all trainings of its track.
        trained = [other.folder for other in steps if (other.kind, other.track) == ("train", step.track)]
        stages = [read_json(folder / name / "stage.json") for name in trained]
        seconds = sum(stage["seconds"]["responses"] + stage["seconds"]["training"] for stage in stages)
        scores = {column: score["mean"] for column, score in one["scores"].items()}
        rows.append(
            {
                "method": config.objective.kind if step.track == ROUNDS else step.label,
                "track": step.track,
                "seed": config.seed,
                "tokens": sum(stage["tokens"] for stage in stages),
                "steps": sum(stage["steps"] for stage in stages),
                "seconds": seconds,
                "scores": scores,
                **{name: one[name] for name in MEASURES},
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of all seeds as a Markdown table, the run's own objective first among the methods."""
    tracks = {row["method"]: row["track"] for row in rows}
    own = next((name for name, track in tracks.items() if track == ROUNDS), None)
    columns = list(rows[0]["scores"])
    header = ["method", *columns, "KL", "own KL", "same answer", f"KL minus {own}'s"]
    header += ["tokens", "steps", "seconds"]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    for name, track in tracks.items():
        mine = sorted((row for row in rows if row["method"] == name), key=lambda row: row["seed"])
        cells = [name, *(interval([100 * row["scores"][column] for row in mine], 1) for column in columns)]
        if mine[0]["token_kl"] is None:
            cells += ["", "", "", ""]
        else:
            cells.append(interval([row["token_kl"] for row in mine], 4))
            cells.append(own_kl([row["own_kl"] for row in mine]))
            cells.append(interval([100 * row["same_answer"] for row in mine], 1))
            reference = {row["seed"]: row["token_kl"] for row in rows if row["method"] == own}
            is_other = track not in (TEACHER, STUDENT, WARMUP, ROUNDS)
            gaps = [row["token_kl"] - reference[row["seed"]] for row in mine] if is_other else []
            cells.append(interval(gaps, 4, sign=True) if gaps else "")
        costs = [statistics.mean(row[key] for row in mine) for key in ("tokens", "steps", "seconds")]
        cells += [f"{cost:,.0f}" for cost in costs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def own_kl(values: Sequence[float | None]) -> str:
    """Return the interval of the KL on own answers; a student that answers nothing has none."""
    found = [value for value in values if value is not None]
    return interval(found, 4) if found else "-"


def interval(values: Sequence[float], digits: int, *, sign: bool = False) -> str:
    """Return mean and half-width of the 95 % interval over seeds; a single seed has none."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    if len(values) < 2:
        return mean
    half = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


if __name__ == "__main__":
    main()
