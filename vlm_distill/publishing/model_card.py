"""The model card of an exported student: README.md with the front matter that the Hugging Face hub reads.

It is written for strangers: local paths of the machine that trained the model do not appear in it. Its text
is model_card.md.j2 beside this file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markupsafe import Markup

from vlm_distill import __version__
from vlm_distill.config import dump_yaml, find_yaml
from vlm_distill.data.recipe import Recipe, load_recipe
from vlm_distill.evaluation.table import format_table, words
from vlm_distill.evaluation.task import ALL
from vlm_distill.markdown import fence_around, inline_code, plain, prose
from vlm_distill.reporting.facts import Run, Training
from vlm_distill.reporting.page import templates
from vlm_distill.reporting.provenance import origins, student_origin, versions
from vlm_distill.reporting.scores import Row, read_scores
from vlm_distill.runs.plan import TEACHER
from vlm_distill.training.config import MECHANICAL

CARD = "README.md"
HOME = "vlm-distill"
LICENCE = ("license", "license_name", "license_link")
HUB_ID = re.compile(r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+\Z")
_MAX_FRONT_MATTER = 64 << 10
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A student of a run, and its training."""

    run: Run
    training: Training


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What is known of the exported files themselves.

    `source_fingerprint` is that of the model folder they come from, `converted` says that their dtype is
    another. `name` is the hub repository, None where nothing is pushed. `settings` is front matter from the
    card of the model that they come from.
    """

    title: str
    name: str | None
    reads_images: bool
    num_parameters: int
    dtype: str
    converted: bool
    fingerprint: str
    source_fingerprint: str
    settings: Mapping[str, Any]


def model_card(exported: Exported, student: Student | None) -> str:
    """Return the card; without a run it says what the files tell and nothing about how they came to be."""
    run = student.run if student else None
    front = _front_matter(exported)
    facts: Values = {"provenance": _provenance(exported, run)}
    if student is not None:
        scores = read_scores(student.run)
        own = next((row for row in scores.rows if row.fingerprint == exported.source_fingerprint), None)
        front |= _known_to_the_hub(student, front["tags"])
        if own is not None and not exported.converted:
            front |= _eval_results(student.run, own, exported, task_type=front["pipeline_tag"])
        facts |= {**_method(student), **_data(student), "own": own, "teacher": scores.of(TEACHER)}
    front |= exported.settings
    environment = templates(Path(__file__).parent)
    environment.filters |= {"code": inline_code, "plain": _plain_cell, "prose": prose}
    environment.filters |= {"table": _table, "yaml": _yaml}
    text = environment.get_template("model_card.md.j2").render(
        facts, exported=exported, student=student, licence=front.get("license"), home=HOME
    )
    return str(ModelCard(f"---\n{ModelCardData(**front).to_yaml()}\n---\n\n{text}\n"))


def card_settings(folder: Path, keys: Sequence[str]) -> Values:
    """Return what the front matter of a folder's own card says under `keys`; nothing where there is none."""
    path = folder / CARD
    if not path.is_file():
        return {}
    with path.open("rb") as handle:
        text = handle.read(_MAX_FRONT_MATTER).decode("utf-8-sig", errors="replace")
    found = REGEX_YAML_BLOCK.search(text)
    try:
        # Written by others, in either version of YAML: as plain texts, or Norwegian (`no`) would be false.
        values = yaml.load(found[2], Loader=yaml.BaseLoader) if found else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return {key: values[key] for key in keys if _is_text(values.get(key))} if isinstance(values, dict) else {}


def _is_text(value: object) -> bool:
    """Return whether a value is a text or a list of texts, of which front matter is made."""
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(one, str) and one for one in items)


def public_name(name: str) -> Markup:
    """Return a model's name in public: a hub id or packaged model as it is, of a local path the last part."""
    if name.startswith(("bundled:", "package:")) or _is_on_the_hub(name):
        return inline_code(name)
    return inline_code(Path(name).name) + " (a local model)"


def _table(rows: Sequence[Mapping[str, object]]) -> Markup:
    return Markup(format_table([{plain(key): _plain_cell(row[key]) for key in row} for row in rows]))


def _plain_cell(value: object) -> Markup:
    return value if isinstance(value, Markup) else plain(str(value)).replace("|", r"\|")


def _yaml(values: Values) -> Markup:
    text = dump_yaml(values)
    fence = fence_around(text, 3)
    return Markup(f"{fence}yaml\n{text}{fence}")


def _is_on_the_hub(name: str) -> bool:
    return HUB_ID.match(name) is not None and not Path(name).exists()


def _front_matter(exported: Exported) -> Values:
    return {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if exported.reads_images else "text-generation",
        "tags": ["distillation", HOME],
    }


def _known_to_the_hub(student: Student, tags: Sequence[str]) -> Values:
    """Return the method, and the models and data sets that have a page there."""
    run = student.run
    names = [run.setting("student.model"), run.setting("student.build.language.model")]
    if run.setting("student.shrink"):
        names.append(run.setting("teacher.model"))
    base = [name for name in names if name and _is_on_the_hub(name)]
    sources = run.data.sources if run.data else ()
    datasets = [source["hub_id"] for source in sources if source["hub_id"] is not None]
    method = student.training.step.settings["objective"]["kind"]
    found = {"tags": [*tags, method], "base_model": base, "datasets": datasets}
    return {key: value for key, value in found.items() if value}


def _eval_results(run: Run, own: Row, exported: Exported, *, task_type: str) -> Values:
    """Return every metric on the whole of each task, in per cent, as the hub shows it."""
    evaluation = next(one for one in run.evaluations if one.step == own.step)
    found = [
        EvalResult(
            task_type=task_type,
            dataset_type=result.task,
            dataset_name=result.task,
            metric_type=metric,
            metric_name=f"{words(metric)}, per cent",
            metric_value=round(100 * mean, 2),
        )
        for result in evaluation.results
        for metric, subsets in result.metrics.items()
        if (mean := subsets[ALL].mean) is not None
    ]
    return {"model_name": exported.title, "eval_results": found} if found else {}


def _method(student: Student) -> Values:
    """Return the trainings that led to this student, and the settings that decide its weights."""
    run, path = student.run, student.run.path_to(student.training)
    settings = {
        one.step.track: {
            "objective": one.step.settings["objective"],
            "train": {
                key: value
                for key, value in one.step.settings["train"].items()
                if key not in ("steps", "epochs", "tokens", *MECHANICAL)
            },
        }
        for one in path
    }
    return {
        "distilled_from": public_name(run.setting("teacher.model")) if run.setting("teacher") else None,
        "origin": student_origin(run, public_name),
        "path": path,
        "settings": {**settings, "sampling": run.setting("generate.sampling")},
    }


def _data(student: Student) -> Values:
    run = student.run
    data = run.data
    needed = {name for one in run.path_to(student.training) for name in one.step.needs}
    return {
        "recipe": data.recipe.get("name", "?") if data else "?",
        "sources": ", ".join(source["text"] or "" for source in data.sources) if data else "",
        "limit": run.setting("data.limit"),
        "counts": [{words(name): f"{count:,}" for name, count in (data.counts if data else {}).items()}],
        "responses": [
            {"by": one.label} | {name: f"{one.counts[name]:,}" for name in sorted(one.counts)}
            for one in run.generations
            if one.step.name in needed and one.counts
        ],
        "quoted": _recipe_comment(run),
    }


def _recipe_comment(run: Run) -> str:
    """Return the comment at the top of the recipe, where licences stand, if the file still is that recipe."""
    name, overrides = run.setting("data.recipe"), run.setting("data.overrides") or []
    if run.setting("data.path") or not name or run.data is None:
        return ""
    try:
        path = find_yaml(name, folder="data_recipes")
        unchanged = load_recipe(name, overrides) == Recipe.model_validate(run.data.recipe)
    except ValueError:
        # The file is gone or changed; ConfigError and pydantic's error are both of this kind.
        return ""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines) if unchanged else ""


def _provenance(exported: Exported, run: Run | None) -> list[Mapping[str, object]]:
    hashes = [("weights and settings here", exported.fingerprint)]
    hashes += [("weights as trained", exported.source_fingerprint), *(origins(run) if run else [])]
    facts: list[tuple[str, str]] = [(f"fingerprint, {what}", inline_code(value)) for what, value in hashes]
    facts += [*(versions(run) if run else []), ("exported by", f"{HOME} {__version__}")]
    return [{"what": what, "value": value} for what, value in facts]
