from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributions import declare, forget
from tests.plain_run import config_of
from vlm_distill.config import shipped
from vlm_distill.data.recipe import load_recipe
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.losses import SFT, Objective
from vlm_distill.runs.config import RunConfig, load_run

MAIN = "configs/easy_vqa.yaml"


@pytest.mark.parametrize("name", shipped("configs"))
def test_every_shipped_config_decodes_and_names_what_is_shipped(name: str) -> None:
    config = load_run(name)
    assert config.name == name
    assert config.data.recipe is not None
    load_recipe(config.data.recipe, config.data.overrides)
    assert config.evaluate is not None
    if config.evaluate.suite is not None:
        for entry in load_suite(config.evaluate.suite).tasks:
            load_task(entry.task)
    for objective in (config.objective, *(control.objective for control in config.controls)):
        assert objective is None or objective.build().authors


@pytest.mark.parametrize("folder", ["configs", "data_recipes", "eval/tasks", "eval/suites"])
def test_every_shipped_file_says_what_it_is_for_and_is_plain_data(folder) -> None:
    for path in shipped(folder).values():
        text = path.read_text()
        assert text.startswith("# "), path
        assert "&" not in text.replace("&&", ""), path


def test_the_students_language_model_has_at_most_a_quarter_of_the_teachers_weights() -> None:
    teacher = load_run("easy_vqa_teacher").student.build
    student = load_run("easy_vqa").student.build
    assert teacher is not None
    assert student is not None

    def size(language) -> int:
        width, inner, layers = language.hidden_size, language.intermediate_size, language.num_hidden_layers
        return layers * (4 * width * width + 3 * width * inner) + 512 * width

    assert size(student.language) <= size(teacher.language) / 4


def test_a_resolved_config_decodes_to_itself(tmp_path: Path) -> None:
    config = load_run(MAIN, ["train.learning_rate=1e-5", "seed=3"])
    assert config.train is not None
    assert config.train.learning_rate == 1e-5
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_evaluation_decodes_its_batch_size_at_once_unless_its_engine_has_another() -> None:
    def batch_size(*overrides: str) -> int:
        evaluate = load_run(MAIN, ["evaluate.batch_size=8", *overrides]).evaluate
        assert evaluate is not None
        assert type(evaluate).model_validate(evaluate.model_dump(mode="json")) == evaluate
        return evaluate.answers_with.batch_size

    assert batch_size() == batch_size("evaluate.engine={kind: transformers}") == 8
    assert batch_size("evaluate.engine={kind: transformers, batch_size: 3}") == 3
    assert batch_size("evaluate.engine={kind: vllm}") == 1024


@pytest.mark.parametrize(
    ("group", "kind", "values"),
    [
        ("divergences", "forward_kl", {"objective": {"kind": "kd"}}),
        ("divergences", "cross_entropy", {"objective": {"kind": "taid"}}),
        ("engines", "transformers", {}),
    ],
)
def test_a_default_whose_kind_a_package_takes_is_not_written_by_that_kind(
    group: str, kind: str, values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_of(**values)
    declare(tmp_path, "bold", f"vlm_distill.{group}", **{kind: "vlm_distill.losses:SkewKL"})
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    with pytest.raises(ValueError, match=rf"its kind is that of bold 0\.3 \(vlm_distill\.{group}: {kind}\)"):
        config_of(**values)
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "train.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("train.trainable.vison=full", "train.trainable.vison: unknown key; did you mean 'vision'?"),
        ("objective.preset=papr", "objective.preset: input should be 'paper' or 'released', got 'papr'"),
        ("objective.kind=distilm2", "objective.kind: unknown kind 'distilm2'; did you mean 'distillm2'?"),
        ("objective.alhpa=0.1", "objective.alhpa: unknown key; did you mean 'alpha'?"),
        (
            "generate.sampling.temperatur=1",
            "generate.sampling.temperatur: unknown key; did you mean 'temperature'?",
        ),
        (
            "student.build.language.hidden=3",
            "student.build.language.hidden: unknown key; did you mean 'hidden_size'?",
        ),
        ("student.build.vision={image_size: 64, patch: 8}", "student.build.vision.patch: unknown key"),
        ("train.epochs=fast", "train.epochs: input should be a valid number"),
        ("train.steps=5", "train: expected exactly one of steps, epochs, tokens, found steps and epochs"),
        ("student.model=x", "student: expected exactly one of `model`, `build` and `shrink`"),
        ("controls=[{name: kd_round_1, objective: {kind: kd}}]", "ends like the folder of a control's round"),
        ("data.recipe=null", "data: expected `recipe`, or `path` of a table with prompts"),
        ("train.patience=2", "train: `patience` counts evaluations of the live student"),
        ("controls=[{name: a, objective: {kind: kd}}, {name: a, objective: {kind: sft}}]", "distinct names"),
        ("controls=[{name: a, objective: {kind: gkdd}}]", "controls.0.objective.kind: unknown kind 'gkdd'"),
        ("teacher=null", "this objective needs `teacher`"),
        ("rounds=-1", "rounds: input should be greater than or equal to 0, got -1"),
    ],
)
def test_mistakes_are_named_by_dotted_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(MAIN, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_config_names_the_nearest_shipped_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'easy_vqa'"):
        load_run("configs/easy_vga.yaml")


def test_a_warm_up_on_labels_needs_no_teacher_whatever_its_objective_is_called() -> None:
    @dataclass(frozen=True)
    class Labels:
        kind: str = "labels"

        def build(self) -> Objective:
            return SFT().build()

    alone = {"teacher": None, "rounds": 0, "controls": (), "evaluate": None}
    warmup = {"objective": Labels(), "train": {"steps": 2}}
    assert config_of(**alone, warmup=warmup).objectives == [Labels()]
    for kind in ("seqkd", "imitkd", "kd"):
        with pytest.raises(ValueError, match="this objective needs `teacher`"):
            config_of(**alone, warmup={**warmup, "objective": {"kind": kind}})
