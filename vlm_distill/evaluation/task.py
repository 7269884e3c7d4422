"""Tasks and suites: the records behind eval/tasks/*.yaml and eval/suites/*.yaml, and how they are found."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vlm_distill.config import PathText, Record, decode, find_yaml, read_yaml
from vlm_distill.data.prompts import Prompt
from vlm_distill.data.sources import Source
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.scorers import Scorer
from vlm_distill.files import hash_json
from vlm_distill.records import Example

ALL = "all"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class GenerateOutput(Record):
    """The model writes a greedy answer, up to `max_new_tokens` tokens or one of the `stop` strings."""

    kind: Literal["generate"] = "generate"
    max_new_tokens: int = Field(default=16, ge=1, le=10**6)
    stop: tuple[str, ...] = ()


class Subset(Record):
    """Examples that every metric is reported for too: those without a reference in `references_not_in`.

    Case and white space at both ends do not matter.
    """

    references_not_in: tuple[str, ...] = Field(min_length=1)

    def contains(self, references: tuple[str, ...]) -> bool:
        excluded = {text.strip().lower() for text in self.references_not_in}
        return excluded.isdisjoint(reference.strip().lower() for reference in references)


class Task(Record):
    """One benchmark: where its data are, how a model is asked, how answers are scored.

    `prompt` is a Jinja template over the columns of a row. `cluster_by` says which examples are not
    independent of each other. `verified` is false until the column names were checked against a real sample
    of the data.
    """

    name: Name
    version: int = Field(ge=1)
    description: str = ""
    data: Source
    prompt: Prompt
    system: str | None = None
    output: GenerateOutput = GenerateOutput()
    metrics: tuple[Scorer, ...] = Field(min_length=1)
    subsets: dict[Name, Subset] = Field(default={})
    cluster_by: Literal["image", "id"] = "image"
    verified: bool = False

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Task":
        names = [metric.name for metric in self.metrics]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two metrics are called {repeated[0]!r}: give one of them another `name`")
        if ALL in self.subsets:
            raise ValueError(f"the subset name {ALL!r} is taken by the whole set: choose another")
        return self

    def hash(self) -> str:
        """Return the hash of everything that can change a number; the description cannot."""
        return hash_json(self.model_dump(mode="json", exclude={"description", "verified"}))

    def asking_hash(self) -> str:
        """Return the hash of what decides which questions are asked and how; metrics and subsets do not."""
        return hash_json(
            self.model_dump(mode="json", include={"name", "data", "prompt", "system", "output", "cluster_by"})
        )

    def cluster(self, example: Example) -> str:
        """Return the cluster of an example: its images; its id where it has none or the task says so.

        Examples with several images share a cluster if they have the same images in the same order.
        """
        return (
            "+".join(example.images) if self.cluster_by == "image" and example.images else f"id:{example.id}"
        )

    def subsets_of(self, references: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name, subset in self.subsets.items() if subset.contains(references))


class SuiteEntry(Record):
    """A task by name or path. `limit` caps the examples; whole clusters are drawn, always the same ones."""

    task: PathText
    limit: int | None = Field(default=None, ge=1)


def _by_name(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


Entry = Annotated[SuiteEntry, BeforeValidator(_by_name, json_schema_input_type=str | SuiteEntry)]


class Suite(Record):
    """Tasks that are run together. An entry is a name, a path, or `{task: ..., limit: ...}`."""

    name: Name
    description: str = ""
    tasks: tuple[Entry, ...] = Field(min_length=1)


def load_task(name: str) -> Task:
    """Return the task that a path or the name of a shipped task means.

    Raises:
        ConfigError: one line with the file, the dotted path of each wrong key and the nearest known one.
    """
    path = find_yaml(name, folder="eval/tasks")
    return decode(Task, read_yaml(path), where=str(path))


def load_suite(name: str) -> Suite:
    """Return the suite that a path or the name of a shipped suite means; its tasks must exist.

    Raises:
        ConfigError: one line, as for a task.
    """
    path = find_yaml(name, folder="eval/suites")
    suite = decode(Suite, read_yaml(path), where=str(path))
    names = [load_task(entry.task).name for entry in suite.tasks]
    for task_name in names:
        if names.count(task_name) > 1:
            raise ConfigError(f"{path}: tasks: {task_name!r} stands twice; results are stored by task name")
    return suite
