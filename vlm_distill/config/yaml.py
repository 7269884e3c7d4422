"""Strict YAML and dotted overrides. Which keys exist is decided by the record that is decoded (decode.py)."""

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm_distill.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2.

    `1e-5` is a number, `yes` and `no` are words (they are VQA answers).
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(
                f"line {self.peek_event().start_mark.line + 1}: anchors and aliases are not allowed"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    replaced = {
        "tag:yaml.org,2002:float",
        "tag:yaml.org,2002:bool",
        "tag:yaml.org,2002:timestamp",
        "tag:yaml.org,2002:int",
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
    return int(text, 16 if text.startswith("0x") else 10)


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


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
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text") from None
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
        if not separator or not key or "" in key.split("."):
            raise ConfigError(f"override {override!r}: expected dotted.key=value")
        _set(result, key.split("."), parse_yaml(text, where=f"override {key}"), where=key)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _set(node: Any, path: list[str], value: Any, *, where: str) -> None:
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise ConfigError(
                f"override {where}: expected the number of a list item below {len(node)}, got {head!r}"
            )
        key: Any = int(head)
    elif isinstance(node, dict):
        key = head
    else:
        raise ConfigError(f"override {where}: {head!r} lies below a plain value, which has no keys")
    if not rest:
        node[key] = value
        return
    if isinstance(node, dict) and (key not in node or node[key] is None):
        node[key] = {}
    _set(node[key], rest, value, where=where)
