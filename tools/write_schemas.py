"""Writes vlm_distill/config/schemas/*.json, the JSON schemas of the YAML files, from their records.

python -m tools.write_schemas
"""

import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from vlm_distill.config.assets import Folder
from vlm_distill.config.schema import FILES
from vlm_distill.data.recipe import Recipe
from vlm_distill.evaluation.task import Suite, Task
from vlm_distill.runs.config import RunConfig

RECORDS: dict[Folder, type[BaseModel]] = {
    "configs": RunConfig,
    "data_recipes": Recipe,
    "eval/tasks": Task,
    "eval/suites": Suite,
}


class _WithoutTitles(GenerateJsonSchema):
    """A key needs no title that repeats it."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_text(record: type[BaseModel]) -> str:
    """Return the schema of a record as the text of its file."""
    schema = record.model_json_schema(schema_generator=_WithoutTitles)
    for one in [schema, *schema.get("$defs", {}).values()]:
        _describe_keys(one)
    return json.dumps({"$schema": GenerateJsonSchema.schema_dialect, **schema}, indent=1) + "\n"


def _describe_keys(schema: dict[str, Any]) -> None:
    """Give each key, for the editor, the sentences about it in the docstring of its record."""
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Za-z`])", " ".join(schema.get("description", "").split()))
    for key, value in schema.get("properties", {}).items():
        about = " ".join(sentence for sentence in sentences if f"`{key}`" in sentence)
        if about:
            value.setdefault("description", about)


def main() -> None:
    for folder, record in RECORDS.items():
        FILES[folder].write_text(schema_text(record), encoding="utf-8")


if __name__ == "__main__":
    main()
