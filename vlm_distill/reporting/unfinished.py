"""What a run has not done yet, in words."""

from vlm_distill.reporting.run_files import RunFiles, is_evaluated, read_mapping
from vlm_distill.reporting.stage_log import read_log


def missing_parts(run: RunFiles) -> list[str]:
    """Return a line for everything that the config asks for and the folder does not hold."""
    return [*_missing_data(run), *_untrained(run), *_unmeasured(run)]


def notes(run: RunFiles) -> list[str]:
    """Return a line for what the config does not ask for, so that its section is empty."""
    lines = []
    if not run.setting("evaluate"):
        lines.append("Nothing is evaluated, because the config has no evaluate.")
    elif not run.setting("evaluate.suite"):
        lines.append("No benchmark is scored, because the config has no evaluate.suite.")
    if not run.setting("teacher"):
        lines.append("The run has no teacher: the student learns from references.")
    counts = read_mapping(run.folder / "data" / "manifest.json").get("counts", {})
    if _compares(run) and counts and not counts.get("held_out"):
        lines.append(
            "The recipe holds nothing out, so students and teacher are not compared on held-out prompts."
        )
    return lines


def _missing_data(run: RunFiles) -> list[str]:
    manifest = read_mapping(run.folder / "data" / "manifest.json")
    if not manifest:
        return ["data: not prepared yet"]
    if not _compares(run) or not manifest["counts"].get("held_out"):
        return []
    is_done = (run.folder / "held_out" / "teacher" / "counts.json").is_file()
    return [] if is_done else ["held-out prompts: the teacher has not answered all of them yet"]


def _compares(run: RunFiles) -> bool:
    wanted = run.setting("evaluate") and run.setting("evaluate.agreement_examples") != 0
    return bool(run.setting("teacher") and wanted)


def _untrained(run: RunFiles) -> list[str]:
    lines = []
    for stage in run.stages:
        rows = read_log(stage.folder).rows
        if not stage.is_trained and rows:
            lines.append(f"{stage.label}: training stopped or is going on after step {rows[-1]['step']:,}")
        elif not stage.is_trained:
            lines.append(f"{stage.label}: not trained yet")
    return lines


def _unmeasured(run: RunFiles) -> list[str]:
    due = [label for label in run.expected_labels if not is_evaluated(run.evaluation(label))]
    lines = [f"{label}: not evaluated yet" for label in due]
    in_summary = {row["model"] for row in run.summary.get("rows", [])}
    late = [label for label in run.found_labels if label not in in_summary]
    if not run.summary and run.expected_labels:
        lines.append("summary.json: written at the end of the run; paired comparisons are missing until then")
    elif late:
        lines.append(f"summary.json: older than the evaluation of {', '.join(late)}")
    return lines
