"""Prompt templates: Jinja in a bounded sandbox that knows the mapped columns and nothing else."""

from typing import Annotated, Any

import jinja2
from pydantic import AfterValidator

from vlm_distill.errors import ConfigError, did_you_mean, one_line, shown
from vlm_distill.templates import BoundedEnvironment

DEFAULT_PROMPT = "{{ question }}"
# A column that a row lacks is no text, not the word None.
_ENVIRONMENT = BoundedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, finalize=lambda value: "" if value is None else value
)
# What a template can raise on values that it did not expect, next to Jinja's own errors.
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def compile_prompt(prompt: str) -> jinja2.Template:
    """Return the template.

    Raises:
        ConfigError: it is not valid Jinja.
    """
    try:
        return _ENVIRONMENT.from_string(prompt)
    except jinja2.TemplateError as error:
        raise ConfigError(f"not a valid prompt template {shown(prompt)}: {one_line(error)}") from None


def _compiles(prompt: str) -> str:
    compile_prompt(prompt)
    return prompt


Prompt = Annotated[str, AfterValidator(_compiles)]
"""A template in a record: what is no valid Jinja does not decode."""


def render_prompt(template: jinja2.Template, variables: dict[str, Any], *, where: str) -> str:
    """Return the prompt of one row; `where` names the row in errors.

    Raises:
        ConfigError: the template uses an unknown variable or fails on the values of this row.
    """
    try:
        return template.render(variables)
    except jinja2.UndefinedError as error:
        name = (error.message or "").split("'")[1] if "'" in (error.message or "") else ""
        raise ConfigError(
            f"{where}: prompt template: {error.message}; {did_you_mean(name, variables)}"
        ) from None
    except _RENDER_ERRORS as error:
        raise ConfigError(
            f"{where}: the prompt template fails: {type(error).__name__}: {one_line(error)}"
        ) from None
