"""YAML as users write it by hand: a small document of text, whole numbers, true, false and null.

YAML 1.1, which PyYAML reads, makes 18 of ``022``, 90 of ``1:30`` and false of ``no``. Here a plain word is what it is
in YAML 1.2, numbers are decimal and have no leading zeros, and anything else is text. Keys are text and given once;
tags are refused, and so is a document that is deep or long beyond any sense.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_TEXT = "tag:yaml.org,2002:str"
_DEEPEST = 20
_MOST_NODES = 10_000
_HALF = re.compile("[\ud800-\udfff]")


class NotYaml(ValueError):
    """Why a text is no YAML of this kind, and where."""


class _Loader(yaml.SafeLoader):
    """Reads with the rules of this module."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  none of YAML 1.1's

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag: str | None = getattr(event, "tag", None)
        self._depth += 1
        self._nodes += 1
        if tag not in (None, "!", _TEXT):
            written = tag.replace("tag:yaml.org,2002:", "!!")
            raise _at(event.start_mark, f"the tag {written} is not supported")
        if half := _HALF.search(str(getattr(event, "value", ""))):  # an escape in quotes; no file or program takes it
            raise _at(event.start_mark, f"it has one half of a surrogate pair (U+{ord(half[0]):04X})")
        if self._depth > _DEEPEST:
            raise _at(event.start_mark, f"it is nested deeper than {_DEEPEST} levels")
        if self._nodes > _MOST_NODES:
            raise _at(event.start_mark, f"it has more than {_MOST_NODES} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key.start_mark, "a key must be plain text; a template ({{ ... }}) must be rendered first")
            if key.value == "<<" and key.style is None:
                raise _at(key.start_mark, "merge keys (<<) are not supported; write the keys out")
            # YAML takes the last of two equal keys and says nothing; a forgotten node must not vanish so.
            if key.value in found:
                raise _at(key.start_mark, f"key {key.value} is set twice")
            found[key.value] = self.construct_object(value, deep=deep)
        return found


for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "-?(?:0|[1-9][0-9]{0,17})", "-0123456789"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _at(mark: yaml.Mark | None, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, mark)


def read(text: str, name: str) -> Any:
    """The document *text* as plain data; None if it is empty. Raises NotYaml."""
    try:
        loader = _Loader(text, name)
    except yaml.reader.ReaderError as error:
        raise NotYaml(flaw(error, text)) from error
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise NotYaml(flaw(error, text)) from error
    except (ValueError, OverflowError) as error:  # PyYAML looks at no bounds
        line = loader.line + 1
        raise NotYaml(f"line {line}: an escape, or a number in a directive, is out of range") from error


def flaw(error: yaml.YAMLError, text: str) -> str:
    """What is wrong with *text*, of which PyYAML raised *error*, and where."""
    if isinstance(error, yaml.reader.ReaderError):
        return _unreadable(error, text)
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error).splitlines()[0]
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{_explained(error)}"


def _explained(error: yaml.MarkedYAMLError) -> str:
    """The problem that *error* is, in words of the file where PyYAML uses those of a parser."""
    problem, context = str(error.problem), error.context or ""
    if problem == "but found another document":
        return "a second document starts here; the file must have only one"
    if "'\\t'" in problem:
        return "a tab cannot be used here; use spaces"
    if context == "while scanning an alias":
        return "* begins an alias; put text that begins with it in quotes"
    start = error.context_mark
    if start is not None and error.problem_mark is not None and start.line < error.problem_mark.line:
        context += f" that starts in line {start.line + 1}"  # an end that is missing is noticed far below
    return f"{problem}, {context}" if context else problem


def _unreadable(error: yaml.reader.ReaderError, text: str) -> str:
    """Where *text*, of which *error* was raised, has a character that no YAML may have, and which."""
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    assert found is not None, error  # noqa: S101  all else that it tells of is of bytes
    line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
    return f"line {line}, column {column}: the character U+{ord(found[0]):04X} is not allowed"
