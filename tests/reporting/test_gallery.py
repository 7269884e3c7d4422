import json
from collections import Counter
from pathlib import Path

from tests.tiny import example
from tests.whole_runs import Copy
from vlm_distill.reporting.facts import open_run
from vlm_distill.reporting.gallery import MAX_CARDS, choose, clipped, read_gallery

RARE, USUAL = ("wrong", "disagreement"), ("right", "agreement")


def test_every_kind_is_shown_however_rare_it_is() -> None:
    examples = [example(f"e-{number}", "?") for number in range(500)]
    kinds = {one.id: RARE if number in (7, 333) else USUAL for number, one in enumerate(examples)}
    shown = choose(examples, kinds)
    assert len(shown) == MAX_CARDS
    assert {"e-7", "e-333"} <= {one.id for one in shown}
    assert choose(examples[::-1], kinds) == shown


def test_kinds_are_what_the_stored_answers_say(finished: Path) -> None:
    gallery = read_gallery(open_run(finished), "round 2")
    assert gallery is not None
    held_out = [json.loads(line) for line in (finished / "data" / "held_out.jsonl").read_text().splitlines()]
    assert gallery.counts["all"] == len(held_out) == len(gallery.cards)
    counts = Counter(kind for card in gallery.cards for kind in card.kinds)
    assert counts == {kind: count for kind, count in gallery.counts.items() if kind != "all"}
    references = {row["id"]: row["references"] for row in held_out}
    for card in gallery.cards:
        answers = {answer.who: answer for answer in card.answers}
        assert list(answers) == ["teacher", "random", "round 2"]
        is_right = answers["round 2"].text.lower() in references[card.id]
        assert card.kinds[0] == ("right" if is_right else "wrong")
        is_same = answers["round 2"].text.lower() == answers["teacher"].text.lower()
        is_stored = "not asked" not in answers["round 2"].note + answers["teacher"].note
        assert ("agreement" in card.kinds) == (is_same and is_stored)
        assert len(card.pictures) == 1


def test_pictures_that_are_gone_are_counted(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    before = read_gallery(open_run(run), "round 2")
    assert before is not None
    for path in (run / "data" / "images").rglob("*"):
        if path.is_file():
            path.unlink()
    gallery = read_gallery(open_run(run), "round 2")
    assert gallery is not None
    assert gallery.num_broken_pictures == len(before.cards)
    assert [card.num_pictures_left_out for card in gallery.cards] == [1] * len(before.cards)


def test_without_a_student_there_is_no_gallery(finished: Path) -> None:
    assert read_gallery(open_run(finished), None) is None
    assert read_gallery(open_run(finished), "round 9") is None


def test_long_texts_are_cut_and_say_so() -> None:
    assert clipped("short", 10) == "short"
    assert clipped("x" * 1300, 300) == "x" * 300 + "… (1,000 more characters)"
