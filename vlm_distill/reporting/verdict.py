"""What a run showed, in one sentence with its numbers."""

from vlm_distill.evaluation.table import per_cent, points
from vlm_distill.evaluation.task import ALL
from vlm_distill.reporting.scores import Row, Score, Scores
from vlm_distill.runs.plan import ROUNDS, STUDENT, TEACHER


def verdict(scores: Scores) -> str:
    """Return how the last student does on the primary score, beside teacher, start and best student."""
    last, primary = scores.last, scores.primary
    if last is None:
        return "No student is evaluated."
    score = last.scores.get(primary) if primary else None
    if score is None or score.mean is None or primary is None:
        return _agreement_alone(scores, last)
    sentence = f"{_name(last)} scores {_percent(score.mean)}{_interval(score)} on {primary}"
    clauses = [*_against_teacher(scores, score.mean, primary), *_against_start(scores, last)]
    if clauses:
        sentence += f", which is {' and '.join(clauses)}"
    same_answer = last.values.get("same_answer")
    if same_answer is not None:
        sentence += f"; it gives the teacher's answer to {_percent(same_answer)} of the held-out prompts"
    return sentence + _best(scores, last, score.mean, primary) + "."


def _percent(value: float) -> str:
    return f"{per_cent(value)}\N{NO-BREAK SPACE}%"


def _name(row: Row) -> str:
    return f"The student of {row.label}" if row.step.track == ROUNDS else f"The student {row.label!r}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f" (95\N{NO-BREAK SPACE}% interval {per_cent(score.low)} to {per_cent(score.high)})"


def _against_teacher(scores: Scores, mean: float, primary: str) -> list[str]:
    teacher = scores.of(TEACHER)
    score = teacher.scores.get(primary) if teacher else None
    if score is None or not score.mean:
        return []
    return [f"{100 * mean / score.mean:.0f}\N{NO-BREAK SPACE}% of its teacher's {_percent(score.mean)}"]


def _against_start(scores: Scores, last: Row) -> list[str]:
    start = scores.of(STUDENT)
    pair = (last.label, start.label if start else None, ALL)
    for one in scores.comparisons:
        if (one["better"], one["than"], one["subset"]) == pair and one["difference"] is not None:
            known = [points(bound) for bound in (one["low"], one["high"]) if bound is not None]
            interval = f" [{', '.join(known)}]" if known else ""
            return [f"{points(one['difference'])} points{interval} over the student before training"]
    return []


def _best(scores: Scores, last: Row, mean: float, primary: str) -> str:
    """Return a clause for a student that does better than the one of the last round."""
    others = [row for row in scores.students if row is not last]
    found = [(row.scores[primary].mean or 0.0, row.label) for row in others if primary in row.scores]
    best, label = max(found, default=(0.0, ""))
    return f"; the best student is {label!r} with {_percent(best)}" if best > mean else ""


def _agreement_alone(scores: Scores, last: Row) -> str:
    same_answer, token_kl = _agreement(last)
    if same_answer is None or token_kl is None:
        return "No score and no agreement with a teacher is measured."
    sentence = (
        f"{_name(last)} gives the teacher's answer to {_percent(same_answer)} of the held-out prompts, "
        f"with a KL of {token_kl:.4f} nats per response token"
    )
    start = scores.of(STUDENT)
    before, kl_before = _agreement(start) if start and start is not last else (None, None)
    if before is None or kl_before is None:
        return sentence + "."
    return f"{sentence} (before training {_percent(before)} and {kl_before:.4f})."


def _agreement(row: Row) -> tuple[float | None, float | None]:
    return row.values.get("same_answer"), row.values.get("token_kl")
