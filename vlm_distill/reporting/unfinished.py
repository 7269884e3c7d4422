"""What a run has not done yet, in words."""

from collections.abc import Iterator

from vlm_distill.reporting.facts import Run


def missing_parts(run: Run) -> list[str]:
    """Return a line for everything that the config asks for and the folder does not hold."""
    return [*_missing_data(run), *_untrained(run), *_unmeasured(run)]


def notes(run: Run) -> list[str]:
    """Return a line for what the config does not ask for, so that its section is empty."""
    lines = []
    if not run.setting("evaluate"):
        lines.append("Nothing is evaluated, because the config has no evaluate.")
    elif not run.setting("evaluate.suite"):
        lines.append("No benchmark is scored, because the config has no evaluate.suite.")
    if not run.setting("teacher"):
        lines.append("The run has no teacher: the student learns from references.")
    if _compares(run) and run.data and not run.data.counts.get("held_out"):
        lines.append(
            "The recipe holds nothing out, so students and teacher are not compared on held-out prompts."
        )
    return lines


def _compares(run: Run) -> bool:
    return run.held_out is not None and run.held_out.step.is_planned


def _missing_data(run: Run) -> Iterator[str]:
    if not run.data:
        yield "data: not prepared yet"
    elif _compares(run) and run.data.counts.get("held_out"):
        assert run.held_out is not None
        if not run.held_out.counts:
            yield "held-out prompts: the teacher has not answered all of them yet"


def _untrained(run: Run) -> Iterator[str]:
    for one in run.trainings:
        if one.is_trained or not one.step.is_planned:
            continue
        if one.rows:
            yield f"{one.label}: training stopped or is going on after step {one.rows[-1]['step']:,}"
        else:
            yield f"{one.label}: not trained yet"


def _unmeasured(run: Run) -> Iterator[str]:
    planned = ((one, one.step.settings) for one in run.evaluations if one.step.is_planned)
    due = [one for one, settings in planned if settings["suite"] or settings["compares"]]
    yield from (f"{one.label}: not evaluated yet" for one in due if not one.is_done)
    in_summary = {row["model"] for row in run.summary.rows}
    late = [one.label for one in run.evaluations if one.is_done and one.label not in in_summary]
    if not run.summary.rows and due:
        yield "summary.json: written at the end of the run; paired comparisons are missing until then"
    elif late:
        yield f"summary.json: older than the evaluation of {', '.join(late)}"
