import pytest

from vlm_distill.reporting.scores import Row, Score, Scores
from vlm_distill.reporting.verdict import verdict
from vlm_distill.runs.plan import Step


def row(label: str, track: str, mean: float | None, *, same_answer: float | None = None) -> Row:
    scores = {} if mean is None else {"vqa": Score(mean=mean, low=mean - 0.1, high=mean + 0.1, n=9)}
    values = {} if same_answer is None else {"token_kl": 0.25, "same_answer": same_answer}
    step = Step(stage=track, kind="evaluate", label=label, folder="", track=track)
    return Row(step=step, fingerprint="", scores=scores, drops={}, values=values)


def scores(*rows: Row, comparisons: tuple[dict[str, object], ...] = ()) -> Scores:
    return Scores(rows=rows, comparisons=comparisons)


def plain(found: Scores) -> str:
    return verdict(found).replace("\N{NO-BREAK SPACE}", " ")


def test_the_last_round_stands_beside_teacher_start_and_best_student() -> None:
    paired = {"better": "round 2", "than": "random", "task": "vqa", "metric": "m", "subset": "all"}
    paired |= {"difference": 0.6, "low": 0.5, "high": 0.7, "p_value": 0.0}
    rows = [
        row("teacher", "teacher", 0.8),
        row("random", "student", 0.0),
        row("round 2", "rounds", 0.6, same_answer=0.75),
        row("seqkd", "seqkd", 0.7),
    ]
    assert plain(scores(*rows, comparisons=(paired,))) == (
        "The student of round 2 scores 60.0 % (95 % interval 50.0 to 70.0) on vqa, which is 75 % of its "
        "teacher's 80.0 % and +60.0 points [+50.0, +70.0] over the student before training; it gives the "
        "teacher's answer to 75.0 % of the held-out prompts; the best student is 'seqkd' with 70.0 %."
    )


def test_without_a_teacher_and_comparisons_only_the_score_is_said() -> None:
    said = plain(scores(row("random", "student", 0.1), row("warm-up", "warmup", 0.5)))
    assert said == "The student 'warm-up' scores 50.0 % (95 % interval 40.0 to 60.0) on vqa."


def test_without_a_suite_agreement_is_the_verdict() -> None:
    start = row("student", "student", None, same_answer=0.1)
    said = plain(scores(start, row("round 1", "rounds", None, same_answer=0.5)))
    assert said.startswith(
        "The student of round 1 gives the teacher's answer to 50.0 % of the held-out prompts"
    )
    assert said.endswith("(before training 10.0 % and 0.2500).")


@pytest.mark.parametrize("rows", [(), (row("teacher", "teacher", 0.8),)])
def test_without_a_student_there_is_nothing_to_say(rows: tuple[Row, ...]) -> None:
    assert verdict(Scores(rows=rows, comparisons=[])) == "No student is evaluated."
