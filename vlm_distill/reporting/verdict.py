"""What a run showed, in one sentence with its numbers."""

from vlm_distill.evaluation.task import ALL
from vlm_distill.reporting.run_files import RunFiles
from vlm_distill.reporting.scores import TEACHER, Row, Score, Scores


def verdict(run: RunFiles, scores: Scores) -> str:
    """Return how the last student does on the primary score, beside teacher, start and best student."""
    last, primary = scores.last, scores.primary
    if last is None:
        return "No student is evaluated."
    score = last.scores.get(primary) if primary else None
    if score is None or score.mean is None or primary is None:
        return _agreement_alone(run, scores, last)
    sentence = f"{_name(last)} scores {percent(score.mean)}{_interval(score)} on {primary}"
    clauses = [*_against_teacher(scores, score.mean, primary), *_against_start(run, scores, last)]
    if clauses:
        sentence += f", which is {' and '.join(clauses)}"
    if last.same_answer is not None:
        sentence += f"; it gives the teacher's answer to {percent(last.same_answer)} of the held-out prompts"
    return sentence + _best(scores, last, score.mean, primary) + "."


def percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def p_value(value: float | None) -> str:
    if value is None:
        return "?"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _name(row: Row) -> str:
    return f"The student of {row.label}" if row.label.startswith("round ") else f"The student {row.label!r}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f" (95\N{NO-BREAK SPACE}% interval {100 * score.low:.1f} to {100 * score.high:.1f})"


def _against_teacher(scores: Scores, mean: float, primary: str) -> list[str]:
    teacher = scores.row(TEACHER)
    score = teacher.scores.get(primary) if teacher else None
    if score is None or not score.mean:
        return []
    return [f"{100 * mean / score.mean:.0f}\N{NO-BREAK SPACE}% of its teacher's {percent(score.mean)}"]


def _against_start(run: RunFiles, scores: Scores, last: Row) -> list[str]:
    for one in scores.comparisons:
        if (one["better"], one["than"], one["subset"]) == (last.label, run.start_label, ALL):
            if one["difference"] is None:
                return []
            bounds = [one["low"], one["high"]]
            known = [points(bound) for bound in bounds if bound is not None]
            interval = f" [{', '.join(known)}]" if known else ""
            return [f"{points(one['difference'])} points{interval} over the student before training"]
    return []


def _best(scores: Scores, last: Row, mean: float, primary: str) -> str:
    """Return a clause for a student that does better than the one of the last round."""
    others = [row for row in scores.rows if row.label not in (TEACHER, last.label)]
    found = [(row.scores[primary].mean or 0.0, row.label) for row in others if primary in row.scores]
    best, label = max(found, default=(0.0, ""))
    return f"; the best student is {label!r} with {percent(best)}" if best > mean else ""


def _agreement_alone(run: RunFiles, scores: Scores, last: Row) -> str:
    if last.same_answer is None or last.token_kl is None:
        return "No score and no agreement with a teacher is measured."
    sentence = (
        f"{_name(last)} gives the teacher's answer to {percent(last.same_answer)} of the held-out prompts, "
        f"with a KL of {last.token_kl:.4f} nats per response token"
    )
    start = scores.row(run.start_label)
    if start is None or start is last or start.same_answer is None or start.token_kl is None:
        return sentence + "."
    return f"{sentence} (before training {percent(start.same_answer)} and {start.token_kl:.4f})."
