"""Jinja templates of others in bounded time and memory: prompts of recipes, chat templates of models.

The sandbox of Jinja keeps a template from Python. This keeps it from asking for too much: every operation and
every character that it makes or compares is charged to the rendering, and nothing is computed while it is
compiled. A value is charged as it would be written out, however often it holds another one; operations that
hand items on without looking into them are charged by their number.
"""

import re
from collections.abc import Callable, Container, ItemsView, Iterator, KeysView, Sequence, ValuesView
from types import GeneratorType
from typing import Any

from jinja2 import TemplateRuntimeError, TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from vlm_distill.errors import one_line

_MAX_SOURCE, _MAX_TAGS, _MAX_NUMBER, _MAX_BITS = 64 << 10, 2000, 100_000, 4096
_MAX_OPERATIONS, _MAX_CHARACTERS = 100_000, 10_000_000
# A number or a list counts as many characters, for the time that it takes to look at.
_VALUE = 20
# More for each character that it is given: some chat templates look back from every turn.
_OPERATIONS_EACH, _CHARACTERS_EACH = 5, 20
# Filters that this file puts into a template; no name of a template has a space in it.
_COUNTED, _CHARGED, _SLICED, _JOINED, _FILTERED = " counted", " charged", " sliced", " joined", " filtered"
# Filters that hand items on without looking into them.
_STRUCTURAL = frozenset(["abs", "attr", "batch", "count", "d", "default", "first", "float", "int", "items"])
_STRUCTURAL |= frozenset(["last", "length", "list", "map", "random", "reject", "rejectattr", "reverse"])
_STRUCTURAL |= frozenset(["round", "select", "selectattr", "slice"])
# Their methods look through all items.
_SEARCHED = (list, tuple, range, KeysView, ValuesView, ItemsView)
_PADDING = frozenset(["center", "ljust", "rjust", "truncate", "zfill"])
# The result is as long as the value times an argument.
_MULTIPLYING = frozenset(["expandtabs", "indent", "tojson", "urlize", "xmlattr"])
_FORMATTING = frozenset(["format", "format_map", "strftime", "strftime_now"])
# They take quadratic time, or make other kinds of values.
_REFUSED = frozenset(["encode", "pprint", "to_bytes", "translate"])
# Of these a template may use attributes: objects of other packages can write files.
_PLAIN_MODULES = frozenset(["builtins", "datetime", "decimal", "jinja2", "markupsafe", "transformers"])
# A width of five digits or more, or from an argument: of %, then of braces.
_WIDE = re.compile(r"[%)][-+ #0_^]*(?:\*|\d{5}|\d*\.(?:\*|\d{5}))|\{[^{}]*[^{}\w]\d{5}|\{[^{}]+\{")


class TemplateLimitError(TemplateRuntimeError):
    """A template asks for more time or memory than a prompt can need."""


class _Meter:
    def __init__(self, given: int) -> None:
        self.operations = _MAX_OPERATIONS + _OPERATIONS_EACH * given
        self.characters = _MAX_CHARACTERS + _CHARACTERS_EACH * given

    def charge(self, characters: int) -> None:
        self.operations -= 1
        self.characters -= characters
        if self.operations < 0:
            raise TemplateLimitError("the template takes too many steps")
        if self.characters < 0:
            raise TemplateLimitError("the template makes too much text")


class _Context(Context):
    """The variables of one rendering, and what it may still spend."""

    def __init__(self, environment: Any, parent: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, parent, *args, **kwargs)
        self.meter = _Meter(_written_size([*parent.values()], limit=1 << 30))

    def derived(self, locals: dict[str, Any] | None = None) -> "_Context":
        context = super().derived(locals)
        assert isinstance(context, _Context)
        context.meter = self.meter
        return context


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of Jinja, whose templates end soon: with their text or with a TemplateError."""

    context_class = _Context
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(
        self, *args: Any, finalize: Callable[[Any], Any] = lambda value: value, **kwargs: Any
    ) -> None:
        @pass_context
        def charged(context: _Context, value: Any) -> Any:
            return _charged(context, finalize(value))

        # Where `finalize` needs the context, output is not computed while compiling either.
        super().__init__(*args, **kwargs, optimized=False, finalize=charged)
        self.filters |= {_COUNTED: _Counted, _CHARGED: _charged, _SLICED: _sliced}
        self.filters |= {_JOINED: _joined, _FILTERED: _filtered}
        del self.globals["lipsum"]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_plain = type(obj).__module__.partition(".")[0] in _PLAIN_MODULES
        return is_plain and super().is_safe_attribute(obj, attr, value)

    def compile(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        if len(source) > _MAX_SOURCE or source.count("{{") + source.count("{%") > _MAX_TAGS:
            limit = f"{_MAX_SOURCE:,} characters and {_MAX_TAGS:,} tags"
            raise TemplateSyntaxError(f"expected at most {limit}", 1)
        try:
            return super().compile(source, *args, **kwargs)
        # Python's own limits; a mistake in the template is a TemplateSyntaxError already.
        except (RecursionError, SyntaxError, MemoryError, ValueError):
            raise TemplateSyntaxError("it is nested too deeply or has too long a number", 1) from None

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Charging(self.filters).visit(source), *args, **kwargs)

    def handle_exception(self, source: str | None = None) -> Any:
        try:
            super().handle_exception(source)
        except RecursionError:
            raise TemplateLimitError("the template calls itself too deeply") from None
        except OverflowError as error:
            raise TemplateLimitError(one_line(error)) from None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:
            context.meter.charge(len(left) + len(right))
            return left + right
        context.meter.charge(_operation_size(operator, left, right, limit=context.meter.characters))
        return super().call_binop(context, operator, left, right)

    def call_filter(
        self,
        name: str,
        value: Any,
        args: Any = None,
        kwargs: Any = None,
        context: Any = None,
        eval_ctx: Any = None,
    ) -> Any:
        if isinstance(value, GeneratorType):
            value = list(value)
        given = [*(args or ()), *(kwargs or {}).values()]
        context.meter.charge(_call_size(name, value, given, limit=context.meter.characters))
        return super().call_filter(name, value, args, kwargs, context, eval_ctx)

    def call_test(
        self,
        name: str,
        value: Any,
        args: Any = None,
        kwargs: Any = None,
        context: Any = None,
        eval_ctx: Any = None,
    ) -> Any:
        context.meter.charge(_written_size([value, *(args or ())], limit=context.meter.characters))
        return super().call_test(name, value, args, kwargs, context, eval_ctx)

    # Its odd names leave all others to the keywords of a template.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        name, meter = getattr(__obj, "__name__", ""), __context.meter
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            args = tuple(list(one) if isinstance(one, GeneratorType) else one for one in args)
            meter.charge(_call_size(name, owner, [*args, *kwargs.values()], limit=meter.characters))
        elif name in _FORMATTING | _REFUSED:
            meter.charge(_call_size(name, "", [*args, *kwargs.values()], limit=meter.characters))
        elif isinstance(__obj, (Macro, LoopContext)):
            meter.charge(len(args))
        else:
            searched = owner if isinstance(owner, _SEARCHED) else None
            meter.charge(_length(owner))
            _charged(__context, [searched, *args, *kwargs.values()])
        result = super().call(__context, __obj, *args, **kwargs)
        meter.charge(_length(result))
        return result


class _Charging(NodeTransformer):
    """Puts the charges into a template that Jinja has no hook for: of loops, text, slices, comparisons."""

    def __init__(self, filters: Container[str]) -> None:
        self._filters = filters

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        node = self.generic_visit(node)
        is_unknown = isinstance(node, nodes.Filter) and node.name not in self._filters
        return node if is_unknown or type(node) not in _CHARGES else _CHARGES[type(node)](node)


def _filter(node: Any, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _loop(node: nodes.For) -> nodes.For:
    node.iter = _filter(node.iter, _COUNTED)
    return node


def _output(node: nodes.Output) -> nodes.Output:
    # Plain text is not charged; a constant is.
    node.nodes = [
        nodes.Const(one.data, lineno=one.lineno) if isinstance(one, nodes.TemplateData) else one
        for one in node.nodes
    ]
    return node


def _concat(node: nodes.Concat) -> nodes.Expr:
    return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _any_filter(node: nodes.Filter) -> nodes.Filter:
    node.args.insert(0, nodes.Const(node.name, lineno=node.lineno))
    node.name = _FILTERED
    return node


def _item(node: nodes.Getitem) -> nodes.Expr:
    if isinstance(node.arg, nodes.Slice):
        return _filter(node, _SLICED)
    if not isinstance(node.arg, nodes.Const):
        node.arg = _filter(node.arg, _CHARGED)
    return node


def _pair(node: nodes.Pair) -> nodes.Pair:
    node.key = _filter(node.key, _CHARGED)
    return node


def _compare(node: nodes.Compare) -> nodes.Compare:
    first = node.ops[0]
    is_short = isinstance(node.expr, nodes.Const) or isinstance(first.expr, nodes.Const)
    # What equals a constant is no longer than it.
    if not (is_short and len(node.ops) == 1 and first.op in ("eq", "ne")):
        operands: list[Any] = [node, *node.ops]
        for one in operands:
            one.expr = _filter(one.expr, _CHARGED)
    return node


def _test(node: nodes.Test) -> nodes.Test:
    if node.args or node.name in ("lower", "upper"):
        node.node, *node.args = [_filter(one, _CHARGED) for one in (node.node, *node.args)]
    return node


_CHARGES: dict[type[nodes.Node], Callable[[Any], nodes.Node]] = {
    nodes.For: _loop,
    nodes.Output: _output,
    nodes.Concat: _concat,
    nodes.Filter: _any_filter,
    nodes.Getitem: _item,
    nodes.Pair: _pair,
    nodes.Compare: _compare,
    nodes.Test: _test,
}


@pass_context
class _Counted:
    """The items of a loop, each charged when it is reached."""

    def __init__(self, context: _Context, items: Any) -> None:
        self._meter, self._items = context.meter, items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._meter.charge(0)
            yield item


@pass_context
def _charged(context: _Context, value: Any) -> Any:
    meter = context.meter
    meter.charge(
        _VALUE + len(value) if type(value) is str else _written_size([value], limit=meter.characters)
    )
    return value


@pass_context
def _sliced(context: _Context, value: Any) -> Any:
    context.meter.charge(_length(value))
    return value


@pass_context
def _joined(context: _Context, parts: Sequence[Any]) -> str:
    return "".join(str(_charged(context, part)) for part in parts)


@pass_context
def _filtered(context: _Context, value: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return context.environment.call_filter(name, value, args, kwargs, context)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, set, dict, range)) else 0


def _written_size(values: list[Any], *, limit: int) -> int:
    """Return about how many characters the values have when written out, or more than `limit`."""
    size, left = 0, list(values)
    while left and size <= limit:
        value = left.pop()
        size += _VALUE
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, range):
            size += len(value)
        elif isinstance(value, (set, frozenset, KeysView, ValuesView, ItemsView)):
            left += value
        elif isinstance(value, Namespace):
            left.append(object.__getattribute__(value, "_Namespace__attrs"))
    return size


def _operation_size(operator: str, left: Any, right: Any, *, limit: int) -> int:
    numbers = [abs(one) for one in (left, right) if isinstance(one, int)]
    if len(numbers) == 2:
        bits = [one.bit_length() for one in numbers]
        made = {"*": sum(bits), "**": bits[0] * numbers[1]}.get(operator, max(bits))
        if made > _MAX_BITS:
            raise TemplateLimitError(f"expected numbers of at most {_MAX_BITS:,} bits")
        return 0
    if operator == "%" and isinstance(left, str):
        return _call_size("format", left, [right], limit=limit)
    return (_length(left) + _length(right)) * max([1, *numbers] if operator == "*" else [1])


def _call_size(name: str, value: Any, given: list[Any], *, limit: int) -> int:
    """Return about how many characters a filter or a method of a text reads and makes."""
    if name in _STRUCTURAL:
        # An attribute may be a path of many.
        steps = 1 + sum(one.count(".") for one in given if isinstance(one, str))
        return _length(value) * steps + _largest(name, given)
    size, longest = _written_size([value, *given], limit=limit), max(map(_length, given), default=0)
    if name in _PADDING:
        return size + _largest(name, given)
    if name in _MULTIPLYING:
        return size * max(1, longest, _largest(name, given))
    if name in _FORMATTING:
        return size * _num_fields(value or next(iter(given), ""))
    if name == "join":  # Separator and list, whichever is which.
        return size + max(1, _length(value)) * max(1, longest)
    if name == "replace":
        texts = [one for one in given if isinstance(one, str)]
        return size + longest * max([value.count(one) for one in texts] if isinstance(value, str) else [size])
    if name in _REFUSED or (name == "sum" and any(isinstance(one, (list, tuple)) for one in given)):
        raise TemplateLimitError(f"{name} is not for templates")
    if name in ("striptags", "wordwrap"):  # All that is left is copied for each tag, or line of a long word.
        text = str(value)
        return size * (1 + max(map(len, text.split()), default=0) // 100 + text.count("<") // 100)
    # Searching from the end takes the product in the worst case.
    return size + size * longest // 100


def _largest(name: str, given: list[Any]) -> int:
    number = max((abs(one) for one in given if isinstance(one, int)), default=0)
    if number > _MAX_NUMBER:
        raise TemplateLimitError(f"{name}: expected numbers up to {_MAX_NUMBER:,}")
    return number


def _num_fields(pattern: Any) -> int:
    """Return how many arguments a format may write; one of thousands of characters is refused."""
    text = str(pattern)
    if _WIDE.search(text.replace("{{", "")):
        raise TemplateLimitError("a format has a field of thousands of characters, or a width of its own")
    return 1 + text.count("{") + text.count("%")
