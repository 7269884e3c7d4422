"""Odd values, and JSON values with odd ones in them."""

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

TEXTS = (
    "",
    " ",
    "\n",
    "nan",
    "null",
    "true",
    "-1",
    "1e400",
    "\u0663",
    "\u00b2",
    "\x00",
    "a\x00b",
    "\ud800",
    "\x1b[31mred",
    "\u202eright",
    "\ufeffmark",
    "x\ny\rz\u2028w",
    "<image>",
    "<image>\n<image>red",
    "<|im_end|>",
    "<|image_pad|></s><pad><unk>",
    "[INST] <<SYS>>",
    "{{ 7 * 7 }}",
    "{% for x in range(10 ** 9) %}{% endfor %}",
    "{0.__class__}%s%n",
    "../../outside",
    "~no_such_user/x",
    "/",
    ".",
    "http://localhost:1/x.png",
    "data:image/png;base64,AAAA",
    "2024-02-30",
    "`x` | **y** <script>",
    "--help",
    "red" * 2_000,
    "a" * 100_000,
)
NUMBERS = (
    0,
    -1,
    1,
    3,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**31,
    2**63,
    10**30,
    10**400,
    True,
    False,
)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


SHAPES: tuple[Any, ...] = (
    None,
    [],
    {},
    [None],
    [[]],
    {"": ""},
    {"a": 1},
    ["a", 1, None],
    {"type": "text"},
    nested(50),
)


def odd_value(random: Random) -> Any:
    return copy.deepcopy(random.choice(random.choice((TEXTS, NUMBERS, SHAPES))))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def replaced(random: Random, value: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy with something else at a path: an odd value, none, a wrapped one or another key."""
    result = copy.deepcopy(value)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    match random.choice(("odd", "odd", "odd", "gone", "wrapped", "text", "renamed", "more")):
        case "odd":
            holder[key] = odd_value(random)
        case "gone":
            del holder[key]
        case "wrapped":
            holder[key] = random.choice(([old], {"x": old}, [old, old]))
        case "text":
            holder[key] = str(old)
        case "renamed" if isinstance(holder, dict):
            holder[f"{key}{random.choice(('s', ' ', '_', '.x'))}"] = holder.pop(key)
        case _ if isinstance(holder, dict):
            holder[random.choice(("x", "kind", "name", "type", ""))] = odd_value(random)
        case _:
            holder.append(odd_value(random))
    return result


def mutated(random: Random, value: Any, *, times: int = 1) -> Any:
    """Return a copy of a JSON value in which so many places are changed."""
    for _ in range(times):
        found = list(places(value))
        value = replaced(random, value, random.choice(found)) if found else odd_value(random)
    return value
