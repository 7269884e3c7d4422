"""Templates end soon, with the text that Jinja's own sandbox makes or with an error of one line."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import StrictUndefined, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from vlm_distill.templates import BoundedEnvironment

GIVEN: dict[str, Any] = {"question": "What colour?", "references": ["red", "blue"], "rows": [*range(100)]}
DOUBLED = "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
AGAIN = "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
# Values that hold themselves a number of times that no one can count.
DEEP = [
    *(
        "{{ ns.x == y }}",
        "{{ ns.x in [y] }}",
        "{{ ns.x is equalto y }}",
        "{{ [ns.x]|select('in', [y])|list }}",
    ),
    *(
        "{{ [ns.x, y]|sort }}",
        "{{ {}[ns.x].a }}",
        "{{ {}.get(ns.x) }}",
        "{{ [1].index(y) }}",
        "{{ [y]|max }}",
    ),
    "{% for i in [ns.x, y] %}{{ loop.changed(i) }}{% endfor %}",
]
LISTED = "{% set r = range(100000)|list %}{% set t = (1,) * 100000 %}{% set k = {}.fromkeys(r) %}"
SEARCHES = [
    *(
        "{{ r.count('z') }}",
        "{{ range(100000).count('z') }}",
        "{{ {}[t] }}",
        "{{ {t: 1} }}",
        "{{ {}.get(t) }}",
    ),
    *("{{ k.keys() == r }}", "{{ 'z' in k.values() }}", "{{ namespace(k) }}", "{{ loop.cycle(*r) }}"),
]
LONG = "{% set a = 'a' * 1000000 %}{% set b = a ~ 'b' %}{% set c = a ~ 'c' %}"
COMPARISONS = [
    *("{{ ([b, c] * 50000)|sort }}", "{{ ([b, c] * 50000)|map('default')|max }}"),
    *("{{ ([b] * 50000)|select('eq', c)|list }}", "{{ ([b, c] * 50000)|unique|list }}"),
    *(f"{{% for i in range(60000) %}}{use}{{% endfor %}}" for use in ("{{ a is lower }}", "{{ rows[a] }}")),
]
BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ 1000000000 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 10**(10**10) }}",
    "{{ 999**999999999 }}",
    "{{ (10**999) * (10**999) }}",
    "{% for i in range(10**9) %}a{% endfor %}",
    "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
    "{% set r = range(100000) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}" + "x" * 100_000 + "{% endfor %}",
    "{% for i in range(60000) %}{% if 'z' in rows %}{% endif %}{% endfor %}",
    "{% for i in range(60000) %}{% if 'z' is in rows %}{% endif %}{% endfor %}",
    "{% for i in range(60000) %}{% set x = rows[1:] %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    *(DOUBLED + use for use in ("{{ ns.x }}", "{{ ns.x|string }}", "{{ ns.x|tojson }}", "{{ '' ~ ns.x }}")),
    *(DOUBLED + use for use in ("{{ '%s' % ns.x }}", "{{ '{}'.format(ns.x) }}", "{{ '%s'|format(ns.x) }}")),
    *(
        "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns }}",
        "{{ 'a'|center(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
    ),
    *("{{ 'a'.zfill(10**9) }}", "{{ '\t'.expandtabs(10**9) }}", "{{ 'a\n'|indent(10**9) }}"),
    *(
        "{{ ('a\n' * 100000)|indent(100000) }}",
        "{{ 1.5|round(10**9, 'ceil') }}",
        "{{ [1]|slice(10**9)|list }}",
    ),
    *(
        "{{ [1]|batch(10**9, 'x')|list }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ (5).to_bytes(10**9, 'big') }}",
    ),
    *("{{ '%1000000000d' % 1 }}", "{{ '%*d' % (10**9, 1) }}", "{{ '%.1000000000f' % 1 }}"),
    *(
        "{{ '%(a)1000000000d' % {'a': 1} }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
    ),
    *("{{ '{:{}}'.format(1, 10**9) }}", "{{ '{x:1000000000}'.format_map({'x': 1}) }}"),
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000)|replace(new='b' * 1000000, old='a') }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ ('a' * 1000000).rfind('b' + 'a' * 500000) }}",
    "{{ range(100000)|join('x' * 1000000) }}",
    "{{ ('x' * 1000000).join(range(9999)|map('string')) }}",
    "{{ range(100000)|map('string')|map('center', 100000)|join }}",
    "{{ ([[1]] * 100000)|sum(start=[])|length }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{{ 'x' * 1000 }}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% block a scoped %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
    "{{ 1" + " + 1" * 50_000 + " }}",
    "{{ question" + ".b" * 50_000 + " }}",
    "{{ 1" + "|abs" * 30_000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "9" * 100_000 + " }}",
    "{{ 0x" + "f" * 100_000 + " }}",
    "{{ a }}" * 200_000,
    "a" * 300_000,
    *(DOUBLED + "{% set y = ns.x %}" + AGAIN + use for use in DEEP),
    *(LISTED + "{% for i in range(60000) %}" + use + "{% endfor %}" for use in SEARCHES),
    *(LONG + use for use in COMPARISONS),
    "{% set a = ('f' * 1000000)|int(base=16) %}{{ a // (a - 1) }}",
    "{{ '字'.encode('punycode') }}",
    "{{ ('<!--x-->' * 100000)|striptags }}",
    "{{ ('a' * 1000000)|wordwrap(1) }}",
    "{{ [1]|pprint }}",
    "{{ picture.thumbnail((1, 1)) }}",
]
REFUSED = [
    "{{ ''.__class__ }}",
    "{{ question.__init__.__globals__ }}",
    "{{ rows.append(1) }}",
    "{{ self._x }}",
]
PLAIN = [
    "{{ question }}",
    "a {{ question|capitalize }}\nAnswer the question.\n",
    "{% for r in references %}{{ loop.index }}/{{ loop.length }} {{ ', ' if not loop.last }}{% endfor %}",
    "{% for r in rows %}{% set outer = loop %}{% for s in 'ab' %}{{ outer.index }}{% endfor %}{% endfor %}",
    "{% for i in range(3) if i != 1 %}{{ i }}{% break %}{% else %}none{% endfor %}",
    "{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}",
    "{{ references|map('upper')|join('; ') }} {{ ', '.join(references) }} {{ rows|batch(3)|first }}",
    "{{ question.replace('colour', 'color') }} {{ question|replace(old='W', new='w') }} {{ rows|sum }}",
    "{{ '%s: %05d' % (question, 3) }} {{ '{}-{:>5}'.format(1, 3) }} {{ '{{a{}}}'.format(1) }}",
    "{{ '%(a)s'|format(a=1) }} {{ question[:3] }} {{ references[0] }} {{ question|truncate(5) }}",
    "{{ question|center(30) }} {{ question.split()|length }}",
    "{% if 'col' in question and references|length > 1 %}y{% else %}n{% endif %}{{ question is defined }}",
    "{{ nope|default('d') }}{{ 'a' ~ 1 ~ question }}{{ '-' * 20 }}{{ 3 * 4 + 2 ** 8 - 7 // 2 }}",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m('b') }}{% filter upper %}abc{% endfilter %}",
    "{{ {'a': [1, 'ü']}|tojson(indent=2) }}{% set j = joiner(',') %}{{ j() }}a{{ j() }}b{{ dict(a=1) }}",
    "{% set ns = namespace(n=0) %}{% for i in rows %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    *(
        "{{ nope }}",
        "{{ nope.x }}",
        "{{ question|nofilter }}",
        "{{ 1 / 0 }}",
        "{{ question is nothing }}",
        "{% if %}",
    ),
    *("{% for x in nope %}{% endfor %}", "{% include 'x' %}", "{{ question.nope }}", "{{ question + 1 }}"),
]


def outcome(template: str, sandbox: type[ImmutableSandboxedEnvironment]) -> object:
    try:
        environment = sandbox(undefined=StrictUndefined, extensions=[loopcontrols])
        return environment.from_string(template).render(GIVEN)
    except (TemplateError, TypeError, ArithmeticError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("number", range(len(BOMBS)), ids=lambda number: BOMBS[number][:60])
def test_a_template_that_asks_for_too_much_is_an_error_in_seconds(number: int) -> None:
    start = time.monotonic()
    with pytest.raises(TemplateError):
        BoundedEnvironment().from_string(BOMBS[number]).render(GIVEN, picture=Image.new("RGB", (8, 8)))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("template", REFUSED)
def test_the_sandbox_is_as_closed_as_that_of_jinja(template: str) -> None:
    found = outcome(template, BoundedEnvironment)
    assert isinstance(found, tuple)
    assert found == outcome(template, ImmutableSandboxedEnvironment)


@pytest.mark.parametrize("template", PLAIN)
def test_text_and_errors_are_those_of_jinja(template: str) -> None:
    assert outcome(template, BoundedEnvironment) == outcome(template, ImmutableSandboxedEnvironment)


def test_long_given_text_may_be_written_several_times() -> None:
    given = "a" * 5_000_000
    assert len(BoundedEnvironment().from_string("{{ a }}{{ a|trim }}{{ a }}").render(a=given)) == 15_000_000


def test_every_rendering_starts_with_all_it_may_spend() -> None:
    template = BoundedEnvironment().from_string("{{ 'a' * 4000000 }}")
    assert [len(template.render()) for _ in range(3)] == [4_000_000] * 3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the chat templates of trl")
def test_chat_templates_of_known_models_give_what_transformers_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    spec = importlib.util.find_spec("trl")
    assert spec is not None
    files = sorted(Path(str(spec.origin)).parent.glob("chat_templates/*.jinja"))
    parts = [{"type": "image"}, {"type": "text", "text": "What <b> is ü?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}]
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"a": 1}}}
    tools = [*turns[:1], {"role": "assistant", "content": "", "tool_calls": [call]}]
    chats = [[{"role": "user", "content": "Hi"}], [{"role": "system", "content": "S"}, *turns], tools]
    found: list[list[object]] = []
    for sandbox in (ImmutableSandboxedEnvironment, BoundedEnvironment):
        monkeypatch.setattr(chat_template_utils, "ImmutableSandboxedEnvironment", sandbox)
        chat_template_utils._compile_jinja_template.cache_clear()
        found.append([rendered(chat, file.read_text()) for file in files for chat in chats])
    assert len(found[0]) > 100
    assert found[0] == found[1]


def rendered(chat: list[dict[str, Any]], template: str) -> object:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        return render_jinja_template(
            [chat], chat_template=template, add_generation_prompt=True, bos_token="<s>"
        )
    except Exception as error:
        return type(error).__name__, str(error)
