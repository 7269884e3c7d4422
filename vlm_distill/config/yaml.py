"""Strict YAML and dotted overrides. Which keys exist is decided by the record that is decoded (decode.py)."""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm_distill.errors import ConfigError, DataError, cut, one_line, shown
from vlm_distill.files import read_text

# PyYAML reads about 150 kB a second.
_MAX_BYTES, _MAX_DEPTH, _MAX_DIGITS = 256 << 10, 50, 18


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2.

    `1e-5` is a number, `yes` and `no` are words (they are VQA answers).
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, "anchors and aliases are not allowed")
        if event.tag is not None:
            raise _refused(event, f"tags such as {cut(event.tag, 80)} are not allowed; quote what is text")
        if self.depth > _MAX_DEPTH:
            raise _refused(event, f"expected at most {_MAX_DEPTH} levels of lists and mappings")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise _refused(node, f"expected text, got half of a surrogate pair in {shown(text)}")
        return text

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _refused(node, f"expected a plain value as key, got {shown(key)}")
            if key in seen:
                raise _refused(node, f"key {shown(key)} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(at: Any, reason: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {at.start_mark.line + 1}: {reason}")


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    replaced = {
        "tag:yaml.org,2002:float",
        "tag:yaml.org,2002:bool",
        "tag:yaml.org,2002:timestamp",
        "tag:yaml.org,2002:int",
        "tag:yaml.org,2002:merge",
        "tag:yaml.org,2002:value",
    }
    kept = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in replaced]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    rules = [
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            "-+.0123456789",
        ),
    ]
    for name, pattern, firsts in rules:
        for first in firsts:
            kept.setdefault(first, []).append((f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$")))
    return kept


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    # YAML 1.1 would read 010 as octal.
    text = str(loader.construct_scalar(node))
    if len(text) > _MAX_DIGITS:
        raise _refused(node, f"expected a number of at most {_MAX_DIGITS} digits, got {cut(text, 40)}")
    return int(text, 16 if text.startswith("0x") else 10)


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, *, where: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ConfigError: it is no YAML, no plain data, or longer or deeper than a config can be.
    """
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{where}: expected at most {_MAX_BYTES:,} characters of YAML, got {len(text):,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {one_line(error)}") from None


class _Dumper(yaml.SafeDumper):
    """A dumper whose output `parse_yaml` reads back: without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# A text that either version of YAML would read as something else is quoted.
_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in yaml.SafeDumper.yaml_implicit_resolvers.keys() | _Loader.yaml_implicit_resolvers.keys()
}


def dump_yaml(value: Any) -> str:
    """Return plain values as YAML with keys in their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    try:
        text = read_text(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    value = parse_yaml(text, where=str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(value).__name__}")
    return value


def apply_overrides(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `config` with every `dotted.key=value` set.

    Values are YAML, list items are named by number.
    """
    result: dict[str, Any] = _copy(config)
    for override in overrides:
        key, separator, text = override.partition("=")
        path = key.split(".")
        if not separator or "" in path or len(path) > _MAX_DEPTH:
            raise ConfigError(f"override {shown(override)}: expected dotted.key=value")
        where = cut(key, 200)
        _set(result, path, parse_yaml(text, where=f"override {where}"), where=where)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _set(node: Any, path: list[str], value: Any, *, where: str) -> None:
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        numbers = {str(number): number for number in range(len(node))}
        if head not in numbers:
            raise ConfigError(
                f"override {where}: expected the number of a list item below {len(node)}, got {shown(head)}"
            )
        key: Any = numbers[head]
    elif isinstance(node, dict):
        key = head
    else:
        raise ConfigError(f"override {where}: {shown(head)} lies below a plain value, which has no keys")
    if not rest:
        node[key] = value
        return
    if isinstance(node, dict) and (key not in node or node[key] is None):
        node[key] = {}
    _set(node[key], rest, value, where=where)
