from pathlib import Path

import pytest

from vlm_distill.reporting.run_files import RunFiles
from vlm_distill.reporting.scores import Row, Score, Scores
from vlm_distill.reporting.verdict import verdict

RUN = RunFiles(folder=Path("run"), config={"student": {"build": {}}}, provenance={}, summary={}, stages=())
BUILT = RunFiles(
    folder=Path("run"), config={"student": {"build": {"x": 1}}}, provenance={}, summary={}, stages=()
)


def row(label: str, mean: float | None, *, same_answer: float | None = None) -> Row:
    scores = {} if mean is None else {"vqa": Score(mean=mean, low=mean - 0.1, high=mean + 0.1, num_items=9)}
    kl = None if same_answer is None else 0.25
    return Row(
        label=label,
        scores=scores,
        drops={},
        token_kl=kl,
        own_kl=kl,
        top1=None,
        same_answer=same_answer,
    )


def scores(*rows: Row, comparisons: tuple[dict[str, object], ...] = ()) -> Scores:
    return Scores(rows=rows, columns=[*rows[0].scores], tasks=[], comparisons=comparisons)


def plain(run: RunFiles, found: Scores) -> str:
    return verdict(run, found).replace("\N{NO-BREAK SPACE}", " ")


def test_the_last_round_stands_beside_teacher_start_and_best_student() -> None:
    paired = {"better": "round 2", "than": "random", "task": "vqa", "metric": "m", "subset": "all"}
    paired |= {"difference": 0.6, "low": 0.5, "high": 0.7, "p_value": 0.0}
    rows = [row("teacher", 0.8), row("random", 0.0), row("round 2", 0.6, same_answer=0.75), row("seqkd", 0.7)]
    assert plain(BUILT, scores(*rows, comparisons=(paired,))) == (
        "The student of round 2 scores 60.0 % (95 % interval 50.0 to 70.0) on vqa, which is 75 % of its "
        "teacher's 80.0 % and +60.0 points [+50.0, +70.0] over the student before training; it gives the "
        "teacher's answer to 75.0 % of the held-out prompts; the best student is 'seqkd' with 70.0 %."
    )


def test_without_a_teacher_and_comparisons_only_the_score_is_said() -> None:
    said = plain(BUILT, scores(row("random", 0.1), row("warm-up", 0.5)))
    assert said == "The student 'warm-up' scores 50.0 % (95 % interval 40.0 to 60.0) on vqa."


def test_without_a_suite_agreement_is_the_verdict() -> None:
    said = plain(RUN, scores(row("student", None, same_answer=0.1), row("round 1", None, same_answer=0.5)))
    assert said.startswith(
        "The student of round 1 gives the teacher's answer to 50.0 % of the held-out prompts"
    )
    assert said.endswith("(before training 10.0 % and 0.2500).")


@pytest.mark.parametrize("rows", [(), (row("teacher", 0.8),)])
def test_without_a_student_there_is_nothing_to_say(rows: tuple[Row, ...]) -> None:
    found = Scores(rows=rows, columns=[], tasks=[], comparisons=[])
    assert verdict(RUN, found) == "No student is evaluated."
