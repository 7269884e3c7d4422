"""The model card of an exported student: README.md with the front matter that the Hugging Face hub reads.

It is written for strangers: local paths of the machine that trained the model do not appear in it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_distill import __version__
from vlm_distill.config import decode, dump_yaml, find_yaml, parse_yaml
from vlm_distill.data.recipe import Recipe, load_recipe
from vlm_distill.data.sources import Source
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.table import format_table
from vlm_distill.reporting.run_files import RunFiles, Stage, read_mapping
from vlm_distill.training.config import MECHANICAL

CARD = "README.md"
HOME = "vlm-distill"
LICENCE = ("license", "license_name", "license_link")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
IMAGE_SNIPPET = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "{name}"{comment}
processor = AutoProcessor.from_pretrained(name)
model = AutoModelForImageTextToText.from_pretrained(name)
picture = Image.new("RGB", (224, 224), "red")  # or Image.open("photo.jpg")
question = "What color is the shape?"
content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": question}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
TEXT_SNIPPET = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"{comment}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Name three colors."}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


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


def model_card(exported: Exported, run: RunFiles | None, stage: Stage | None) -> str:
    """Return the card; without a run it says what the files tell and nothing about how they came to be."""
    front = {**_front_matter(exported, run), **exported.settings}
    parts = [f"---\n{dump_yaml(front)}---", f"# {exported.title}", _what(exported, run, stage)]
    parts += ["## How to use", _usage(exported)]
    if run is not None and stage is not None:
        parts += [
            "## Method",
            *_method(run, stage),
            "## Data",
            *_data(run, stage),
            "## Scores",
            *_scores(run, exported),
        ]
    parts += ["## Licence", _licence(front)]
    parts += ["## Provenance", _provenance(exported, run)]
    return "\n\n".join(parts) + "\n"


def card_settings(folder: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return what the front matter of a folder's own card says under `keys`; nothing where there is none."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
    try:
        values = parse_yaml(found[1], where=str(path)) if found else {}
    except ConfigError:
        # Written by others, and perhaps in YAML that this package does not read.
        return {}
    return {key: values[key] for key in keys if key in values} if isinstance(values, dict) else {}


def public_name(name: str) -> str:
    """Return a model's name in public: a hub id or packaged model as it is, of a local path the last part."""
    if HUB_ID.match(name) and not Path(name).exists():
        return f"`{name}`"
    if name.startswith(("bundled:", "package:")):
        return f"`{name}`"
    return f"`{Path(name).name}` (a local model)"


def _front_matter(exported: Exported, run: RunFiles | None) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if exported.reads_images else "text-generation",
        "tags": ["distillation", HOME],
    }
    if run is None:
        return front
    if run.setting("objective.kind"):
        front["tags"].append(run.setting("objective.kind"))
    names = [run.setting("student.model"), run.setting("student.build.language.model")]
    if run.setting("student.shrink"):
        names.append(run.setting("teacher.model"))
    base = [name for name in names if name and HUB_ID.match(name) and not Path(name).exists()]
    datasets = [source.hub_id for source in _sources(run) if source.hub_id is not None]
    return front | ({"base_model": base} if base else {}) | ({"datasets": datasets} if datasets else {})


def _what(exported: Exported, run: RunFiles | None, stage: Stage | None) -> str:
    kind = "vision-language model" if exported.reads_images else "language model"
    size = f"A {kind} of {exported.num_parameters / 1e6:,.2f} million parameters in {exported.dtype}"
    if run is None or stage is None:
        return f"{size}, exported with {HOME}."
    teacher = run.setting("teacher.model")
    origin = f", distilled from {public_name(teacher)}" if teacher else ""
    return f"{size}{origin} with {HOME}: run `{run.name}`, {stage.label}. It starts as {_start(run)}."


def _start(run: RunFiles) -> str:
    if run.setting("student.model"):
        return public_name(run.setting("student.model"))
    if run.setting("student.shrink"):
        return "its teacher with fewer layers"
    language, tower = run.setting("student.build.language.model"), run.setting("student.build.vision.from")
    parts = [f"the language model {public_name(language)}" if language else "a new language model"]
    parts.append(
        f"the vision tower of {'the teacher' if tower == 'teacher' else 'another model'}" if tower else ""
    )
    return " with ".join(part for part in parts if part)


def _usage(exported: Exported) -> str:
    snippet = IMAGE_SNIPPET if exported.reads_images else TEXT_SNIPPET
    comment = "" if exported.name else "  # this folder"
    code = snippet.format(name=exported.name or ".", comment=comment)
    return f"It needs `transformers` only.\n\n```python\n{code}```"


def _method(run: RunFiles, stage: Stage) -> Iterator[str]:
    """Yield the stages that led to this one, and the settings that they share."""
    path = _path_to(run, stage)
    yield format_table([_stage_row(run, one) for one in path])
    settings: dict[str, Any] = {}
    for one in path:
        objective, train = _settings(run, one)
        left_out = ("steps", "epochs", "tokens", *MECHANICAL)
        kept = {key: value for key, value in train.items() if key not in left_out}
        settings[_track(one.label) or "rounds"] = {"objective": objective, "train": kept}
    sampling = run.setting("generate.sampling")
    yield "The settings that decide the weights, with every default:"
    yield f"```yaml\n{dump_yaml({**settings, 'sampling': sampling}).rstrip()}\n```"


def _path_to(run: RunFiles, stage: Stage) -> list[Stage]:
    """Return the trained stages from the start to this one: the warm-up, then those of its own track."""
    before = run.stages[: run.stages.index(stage)]
    track = _track(stage.label)
    return [one for one in before if one.is_trained and _track(one.label) in ("warm-up", track)] + [stage]


def _track(label: str) -> str:
    """Return `warm-up`, the name of a control, or nothing for the rounds of the run itself."""
    return re.sub(r"(^| )round \d+$", "", label)


def _settings(run: RunFiles, stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return objective and training record of a stage."""
    track = _track(stage.label)
    if track == "warm-up":
        return run.setting("warmup.objective") or {}, run.setting("warmup.train") or {}
    train = dict(run.setting("train") or {})
    if not track:
        return run.setting("objective") or {}, train
    control: dict[str, Any] = next((one for one in run.setting("controls") or [] if one["name"] == track), {})
    if control.get("learning_rate"):
        train["learning_rate"] = control["learning_rate"]
    return control.get("objective", {}), train


def _stage_row(run: RunFiles, stage: Stage) -> dict[str, object]:
    objective, train = _settings(run, stage)
    result = read_mapping(stage.folder / "stage.json")
    return {
        "stage": stage.label,
        "objective": objective.get("kind", "?"),
        "steps": f"{result['steps']:,}",
        "trained tokens": f"{result['tokens']:,}",
        "prompts a step": train.get("batch_size", "?"),
        "learning rate": train.get("learning_rate", "?"),
    }


def _recipe(run: RunFiles) -> dict[str, Any]:
    found: dict[str, Any] = read_mapping(run.folder / "data" / "manifest.json").get("recipe", {})
    return found


def _sources(run: RunFiles) -> list[Source]:
    recipe = _recipe(run)
    where = f"the recipe in {run.folder / 'data' / 'manifest.json'}"
    return [entry.source for entry in decode(Recipe, recipe, where=where).sources] if recipe else []


def _data(run: RunFiles, stage: Stage) -> Iterator[str]:
    recipe = _recipe(run)
    counts = read_mapping(run.folder / "data" / "manifest.json").get("counts", {})
    names = ", ".join(source.describe() for source in _sources(run))
    limit = run.setting("data.limit")
    drawn = "" if limit is None else f" Of its training prompts at most {limit:,} were drawn."
    yield f"Recipe `{recipe.get('name', '?')}`: {names}.{drawn} None of it is part of this folder."
    yield format_table([{name.replace("_", " "): f"{number:,}" for name, number in counts.items()}])
    sets = [one for one in _response_sets(_path_to(run, stage)) if (run.folder / "responses" / one).is_dir()]
    if sets:
        yield "Responses, and how they ended:"
        yield format_table([_response_row(run.folder / "responses" / one) for one in sets])
    if quoted := _recipe_comment(run, recipe):
        yield f"The recipe says: {quoted}"


def _response_sets(path: Sequence[Stage]) -> list[str]:
    """Return the folders of the stored responses that the stages on a path may have trained on."""
    names = ["teacher"]
    for stage in path:
        track, number = _track(stage.label), re.search(r"round (\d+)$", stage.label)
        if track == "warm-up":
            names.append("student_round_0")
        else:
            names.append(f"{track}_student_round_" if track else "student_round_")
            names[-1] += number[1] if number else "1"
    return names


def _response_row(folder: Path) -> Mapping[str, object]:
    counts = read_mapping(folder / "counts.json")
    return {"by": folder.name.replace("_", " ")} | {name: f"{counts[name]:,}" for name in sorted(counts)}


def _recipe_comment(run: RunFiles, recipe: Mapping[str, Any]) -> str:
    """Return the comment at the top of the recipe, where licences stand, if the file still is that recipe."""
    name, overrides = run.setting("data.recipe"), run.setting("data.overrides") or []
    if run.setting("data.path") or not name:
        return ""
    try:
        path = find_yaml(name, folder="data_recipes")
        unchanged = load_recipe(name, overrides) == Recipe.model_validate(recipe)
    except ValueError:
        # The file is gone or changed; ConfigError and pydantic's error are both of this kind.
        return ""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines) if unchanged else ""


def _scores(run: RunFiles, exported: Exported) -> Iterator[str]:
    """Yield the table of this model beside its teacher, found by the fingerprint of the weights."""
    rows = run.summary.get("rows", [])
    own = next((row for row in rows if row["fingerprint"] == exported.source_fingerprint), None)
    if own is None:
        yield "Not measured: the run has no scores of these weights."
        return
    teacher: Mapping[str, Any] = next(
        (row for row in rows if row["model"] == "teacher"), {"scores": {}, "image_shuffle_drop": {}}
    )
    yield format_table(_score_rows(own, teacher))
    yield (
        "Scores in per cent with the 95 % interval, clustered by image. KL(teacher || student) in nats per "
        "response token, equal first choice (top-1) and equal answer on held-out prompts. Drop: points lost "
        "when the images are permuted."
    )
    if exported.converted:
        yield f"They were measured before the weights were rounded to {exported.dtype}."


def _score_rows(own: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Mapping[str, object]]:
    rows: list[Mapping[str, object]] = [
        {
            "score": name,
            "this model": _interval(score),
            "teacher": _interval(teacher["scores"].get(name)),
            "questions": f"{score['n']:,}",
        }
        for name, score in own["scores"].items()
    ]
    for task, drop in own["image_shuffle_drop"].items():
        other = teacher["image_shuffle_drop"].get(task)
        rows.append({"score": f"{task} drop", "this model": _per_cent(drop), "teacher": _per_cent(other)})
    if own["token_kl"] is not None:
        kinds = (("KL", "token_kl"), ("KL on own answers", "own_kl"))
        rows += [
            {"score": words, "this model": f"{own[name]:.4f}", "teacher": "0"}
            for words, name in kinds
            if own.get(name) is not None
        ]
        rows += [
            {"score": words, "this model": _per_cent(own[name]), "teacher": "100.0"}
            for name, words in (("top1", "top-1"), ("same_answer", "same answer"))
        ]
    return rows


def _interval(score: Mapping[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return "-"
    return f"{_per_cent(score['mean'])} [{_per_cent(score['low'])}, {_per_cent(score['high'])}]"


def _per_cent(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.1f}"


def _licence(front: Mapping[str, Any]) -> str:
    known = (
        f"`{front['license']}`. " if "license" in front else "Not known to the program that wrote this card. "
    )
    return f"{known}The licences of the teacher, of the student's start and of the data may bind it as well."


def _provenance(exported: Exported, run: RunFiles | None) -> str:
    facts = {
        "weights and settings here": exported.fingerprint,
        "weights as trained": exported.source_fingerprint,
    }
    provenance = run.provenance if run is not None else {}
    facts |= {
        words: provenance[name]
        for name, words in (("teacher", "teacher"), ("student", "student before training"), ("data", "data"))
        if provenance.get(name)
    }
    rows: list[Mapping[str, object]] = [
        {"what": f"fingerprint, {words}", "value": f"`{value}`"} for words, value in facts.items()
    ]
    if "seed" in provenance:
        rows.append({"what": "seed", "value": provenance["seed"]})
    packages: Sequence[tuple[str, str | None]] = list(provenance.get("packages", {}).items())
    rows += [{"what": name, "value": version or "not installed"} for name, version in packages]
    if "python" in provenance:
        rows.append({"what": "Python", "value": provenance["python"]})
    rows.append({"what": "exported by", "value": f"{HOME} {__version__}"})
    return format_table(rows)
