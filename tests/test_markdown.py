"""Names inside Markdown, HTML and log lines: what they hold stays what it is, a text."""

import re

import pytest

from vlm_distill.evaluation.table import format_table
from vlm_distill.markdown import inline_code, plain, prose

NAME = "a`b\n---\nlicense: x|y<script>\x1b[31m\u202e[z](http://z)*w*"


@pytest.mark.parametrize("text", ["plain", "`", "``a`b", "a\nb", "``` `` `", NAME])
def test_inline_code_holds_any_text_on_one_line(text: str) -> None:
    code = inline_code(text)
    found = re.fullmatch(r"(`+) ?(.*?) ?\1", code)
    assert found is not None
    assert found[1] not in found[2]
    assert code.isprintable()


def test_a_plain_text_is_no_markdown_and_no_html() -> None:
    assert plain(NAME) == r"a\`b --- license: x|y&lt;script&gt;\\x1b\[31m\\u202e\[z\](http://z)\*w\*"
    assert plain("exact_match of _a_") == r"exact_match of \_a\_"
    assert plain(inline_code("a*b")) == "`a*b`"


def test_prose_keeps_markdown_and_loses_html() -> None:
    assert prose("[a](b)\n<img>") == "[a](b) &lt;img&gt;"


def test_a_table_keeps_its_rows_and_columns_whatever_names_hold() -> None:
    lines = format_table([{NAME: NAME, "b": 1}, {"b": "a\\|b"}]).split("\n")
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert all(line.isprintable() for line in lines)
