from pathlib import Path
from typing import Any

import pytest

from vlm_distill.config import decode, shipped
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.task import Task, load_suite, load_task
from vlm_distill.records import Example

TASKS, SUITES = shipped("eval/tasks"), shipped("eval/suites")


def values(**changes: Any) -> dict[str, Any]:
    """Return the YAML values of a small task."""
    return {
        "name": "toy",
        "version": 1,
        "data": {"kind": "files", "paths": "toy.jsonl", "columns": {"question": "q", "references": "a"}},
        "prompt": "{{ question }}",
        "metrics": [{"kind": "exact_match"}],
        **changes,
    }


def toy(**changes: Any) -> Task:
    return decode(Task, values(**changes), where="toy.yaml")


@pytest.mark.parametrize("name", TASKS)
def test_every_shipped_task_decodes_under_its_file_name(name: str) -> None:
    assert load_task(name).name == name
    assert TASKS[name].read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", SUITES)
def test_every_shipped_suite_decodes_and_its_tasks_exist(name: str) -> None:
    assert load_suite(name).name == name
    assert SUITES[name].read_text(encoding="utf-8").startswith("# ")


def test_easy_vqa_reports_its_open_questions_apart() -> None:
    task = load_task("easy_vqa")
    assert task.subsets_of(("circle",)) == ("open",)
    assert task.subsets_of(("No",)) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": [{"kind": "exact_mach"}]}, "did you mean 'exact_match'"),
        ({"metrics": [{"kind": "exact_match"}] * 2}, "two metrics are called 'exact_match'"),
        ({"metrics": [{"kind": "vqa_accuracy", "profile": "openai"}]}, "profile"),
        ({"metrics": []}, "metrics"),
        ({"subsets": {"all": {"references_not_in": ["yes"]}}}, "'all' is taken"),
        ({"subsets": {"open": {"references_not": ["yes"]}}}, "did you mean 'references_not_in'"),
        ({"name": "a/b"}, "name"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"prompt": "{{ question "}, "prompt: not a valid prompt template"),
        ({"output": {"kind": "generate", "max_new_tokens": 0}}, "output"),
    ],
)
def test_a_wrong_task_is_one_line_that_says_where(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        toy(**changes)
    assert message in str(error.value)
    assert str(error.value).startswith("toy.yaml: ")
    assert "\n" not in str(error.value)


def test_scoring_changes_the_task_hash_but_not_what_is_asked() -> None:
    strict = toy(metrics=[{"kind": "exact_match", "ignore_case": False}])
    assert strict.hash() != toy().hash()
    assert strict.asking_hash() == toy().asking_hash()
    assert toy(prompt="Q: {{ question }}").asking_hash() != toy().asking_hash()
    assert toy(description="words").hash() == toy().hash()


def test_examples_cluster_by_image_and_without_one_by_id() -> None:
    with_image, without = Example(id="a", messages=(), images=("f00d",)), Example(id="b", messages=())
    assert toy().cluster(with_image) == toy().cluster(Example(id="c", messages=(), images=("f00d",)))
    assert toy().cluster(without) != toy().cluster(Example(id="c", messages=()))
    assert toy(cluster_by="id").cluster(with_image) == "id:a"


def test_a_suite_takes_names_and_limits_and_refuses_a_task_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntasks: [{task: easy_vqa, limit: 100}]\n")
    assert load_suite(str(path)).tasks[0].limit == 100
    path.write_text("name: mine\ntasks: [easy_vqa, {task: easy_vqa, limit: 5}]\n")
    with pytest.raises(ConfigError, match="'easy_vqa' stands twice"):
        load_suite(str(path))
    path.write_text("name: mine\ntasks: [easy_vga]\n")
    with pytest.raises(ConfigError, match="did you mean 'easy_vqa'"):
        load_suite(str(path))
