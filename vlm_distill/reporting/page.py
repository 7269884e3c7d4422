"""From contents to HTML: the template, its styles and its script, all of them files beside this one."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from vlm_distill.reporting.charts.svg import number
from vlm_distill.reporting.verdict import p_value, points

HERE = Path(__file__).parent


def render(contents: Mapping[str, Any]) -> str:
    """Return the page. Whatever comes from data is escaped; styles and script are admitted by their hash."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "p_value": p_value, "short": _short, "count": _count}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        contents,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _hash(text: str) -> str:
    """Return what a content security policy calls this inline text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _short(value: float | None) -> str:
    return "–" if value is None else number(value)  # noqa: RUF001 (a dash for nothing)


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"  # noqa: RUF001
