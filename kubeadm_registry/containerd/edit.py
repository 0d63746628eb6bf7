"""Edits single keys of a TOML file and leaves every other byte of it as it was.

tomlkit keeps comments, but moves blank lines and indentation when it adds a table to a file that somebody wrote by
hand. Here a file is a list of statements (a header, or a key with its value), found by parsing; one statement is
changed, inserted or taken out, and the result must parse to exactly what was meant, otherwise nothing is changed.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tomlkit

from kubeadm_registry.engine.changes import unified

Path = tuple[str, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
#: What a registry is logged in to by, with its value, a string of any kind: in config.toml, and in the ``header`` of a
#: hosts file. One without an end is no TOML, and may be there all the same.
_LOGIN = re.compile(
    rb"""(?is)\b((?:password|auth|identitytoken|authorization)["']?\s*=\s*\[?\s*)"""
    rb"""("{3}.*?"{3}|'{3}.*?'{3}|["']{3}[^"'\n]*|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|["'][^"'\n]*)"""
)
#: A multi-line array or string longer than this is taken for a mistake in the scanner rather than followed.
_LONGEST_STATEMENT = 20_000


class Unparsable(ValueError):
    """The text is not TOML: *line* is the first line that cannot be read, *reason* what the parser says."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.line = line


class Uneditable(ValueError):
    """The text is TOML, yet a key cannot be set in it without touching something else."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Lines ``start`` to ``end`` (excluded) of a file: a header, or a key of the table *table* with its value."""

    start: int
    end: int
    header: bool
    table: Path
    key: Path
    value: Any = None

    @property
    def path(self) -> Path:
        """The key's whole path; for a header that of the table."""
        return self.table + self.key


def parse(text: str) -> dict[str, Any]:
    """*text* as plain values. Raises Unparsable with the line."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        where = re.search(r"\(at line (\d+), column \d+\)", str(error))
        at_end = "(at end of document)" in str(error)
        line = int(where[1]) if where else len(text.splitlines()) if at_end else 0
        raise Unparsable(line, re.sub(r" \(at .*\)$", "", str(error))) from error


def difference(path: str, old: bytes | None, new: bytes | None) -> str:
    """A unified diff of one of containerd's files, the logins in it unreadable.

    They may stand beside what changes, and be earlier ones, unknown here.
    """
    before, after = (None if one is None else _LOGIN.sub(rb'\1"<login>"', one) for one in (old, new))
    return unified(path, before, after)


def get(values: Any, path: Sequence[str]) -> Any:
    """The value at *path*, or None."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def lines_of(text: str) -> list[str]:
    """The lines with their ends; unlike str.splitlines only at line feeds, as TOML counts them."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def statements(text: str) -> list[Statement]:
    """What *text*, which must parse, consists of; comments and blank lines lie between the statements."""
    lines = lines_of(text)
    found: list[Statement] = []
    table: Path = ()
    start = 0
    while start < len(lines):
        bare = lines[start].strip()
        if not bare or bare.startswith("#"):
            start += 1
        elif bare.startswith("["):
            table = tuple(_only_path(parse(lines[start])))
            found.append(Statement(start, start + 1, True, table, ()))
            start += 1
        else:
            end, values = _statement(lines, start)
            key, value = _key_of(lines[start], values)
            found.append(Statement(start, end, False, table, key, value))
            start = end
    return found


def _statement(lines: Sequence[str], start: int) -> tuple[int, dict[str, Any]]:
    """Where the statement that begins at *start* ends: a part of a value never parses, so the first part that does."""
    for end in range(start + 1, min(len(lines), start + _LONGEST_STATEMENT) + 1):
        try:
            return end, tomllib.loads("".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
    raise Uneditable(f"the value that starts in line {start + 1} does not end")


def _only_path(values: Any) -> Iterator[str]:
    """The keys of a header that was parsed alone: each table holds the next one."""
    while values:
        if isinstance(values, list):
            values = values[-1]
            continue
        ((key, values),) = values.items()
        yield key


def _key_of(line: str, values: dict[str, Any]) -> tuple[Path, Any]:
    """The dotted key of a statement and its value. An inline table is a value, not a part of the key."""
    path: list[str] = []
    value: Any = values
    for _ in range(_depth(_key_text(line))):
        ((key, value),) = value.items()
        path.append(key)
    return tuple(path), value


def _key_text(line: str) -> str:
    """The text before the first equals sign that is not within quotes."""
    matched = re.match(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'=])*""", line)
    return matched[0].strip() if matched else line


def _depth(key: str) -> int:
    """How many parts a dotted key has."""
    values: Any = tomllib.loads(f"{key} = 0\n")
    depth = 0
    while isinstance(values, dict):
        ((_, values),) = values.items()
        depth += 1
    return depth


def dotted(path: Sequence[str]) -> str:
    """*path* as TOML writes it: bare where it can be, quoted elsewhere."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False) for key in path)


def literal(value: str | int) -> str:
    """A value as TOML writes it. JSON's strings are TOML's basic strings."""
    return json.dumps(value, ensure_ascii=False)


def set_key(text: str, table: Path, key: str, value: str | int) -> str:
    """*text* with *key* of *table* set to *value*; the table is made if it is not there.

    Everything else stays: comments, order, line ends, indentation. Raises Uneditable where that cannot be done.
    """
    expected = copy.deepcopy(parse(text))
    inner = expected
    for part in table:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise Uneditable(f"{dotted(table)} is not a table")
    inner[key] = value
    return _checked(_set(text, table, key, value), expected)


def has_header(text: str, table: Path) -> bool:
    """Whether *table* has a header of its own."""
    return any(statement.header and statement.path == table for statement in statements(text))


def unset_key(text: str, table: Path, key: str, *, drop_header: bool = False) -> str:
    """*text* without *key* of *table*; with *drop_header* also without the table's header, if no key is left below it.

    Raises Uneditable like set_key.
    """
    expected = copy.deepcopy(parse(text))
    inner = get(expected, table)
    if not isinstance(inner, dict) or key not in inner:
        return text
    del inner[key]
    new = _unset(text, table, key)
    if drop_header and not any(not item.header and item.table == table for item in statements(new)):
        new = _without_header(new, table)
    return _checked(new, _without_empty(expected, table, parse(new)))


def _checked(new: str, expected: dict[str, Any]) -> str:
    try:
        is_so = parse(new) == expected
    except Unparsable as error:
        raise Uneditable(str(error)) from error
    if not is_so:
        raise Uneditable("the layout of the file does not allow adding a key")
    return new


def _without_empty(expected: dict[str, Any], table: Path, now: dict[str, Any]) -> dict[str, Any]:
    """*expected* without those of *table* and the tables above it that are empty and went with their only key."""
    for length in range(len(table), 0, -1):
        if get(expected, table[:length]) == {} and get(now, table[:length]) is None:
            del get(expected, table[: length - 1])[table[length - 1]]
    return expected


def _set(text: str, table: Path, key: str, value: str | int) -> str:
    lines = lines_of(text)
    newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    found = statements(text)
    path = (*table, key)
    for statement in found:
        inline = isinstance(statement.value, dict) and path[: len(statement.path)] == statement.path
        if not statement.header and (statement.path == path or inline):
            chunk = "".join(lines[statement.start : statement.end])
            lines[statement.start : statement.end] = [_changed(chunk, path[len(statement.table) :], value)]
            return "".join(lines)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline
    at, new = _insertion(lines, found, table, key, value)
    lines[at:at] = [line + newline for line in new]
    return "".join(lines)


def _changed(chunk: str, path: Sequence[str], value: str | int) -> str:
    """One statement with another value; its indentation, its kind of quotes and the comment behind it stay."""
    document = tomlkit.parse(chunk)
    inner: Any = document
    for part in path[:-1]:
        if part not in inner:
            inner[part] = tomlkit.inline_table()
        inner = inner[part]
    old = inner.get(path[-1])
    quoted = isinstance(value, str) and isinstance(old, tomlkit.items.String) and re.match("'(?!'')", old.as_string())
    inner[path[-1]] = tomlkit.string(str(value), literal=True) if quoted and "'" not in str(value) else value
    return tomlkit.dumps(document)


def _insertion(
    lines: Sequence[str], found: Sequence[Statement], table: Path, key: str, value: str | int
) -> tuple[int, list[str]]:
    """Before which line the new key goes, and the lines that set it."""
    if not table:
        return (found[0].start if found else len(lines)), [f"{dotted((key,))} = {literal(value)}"]
    for statement in found:
        if statement.header and statement.path == table:
            return statement.end, [_inner_indent(lines, found, statement) + f"{dotted((key,))} = {literal(value)}"]
    if (sibling := _dotted_sibling(found, table)) is not None:
        rest = (*table[len(sibling.table) :], key)
        return sibling.end, [_indent(lines[sibling.start]) + f"{dotted(rest)} = {literal(value)}"]
    children = [s for s in found if s.header and s.path[: len(table)] == table]
    if children:
        before = [s for s in found if s.start < children[0].start]
        at, indent = (before[-1].end if before else children[0].start), _indent(lines[children[0].start])
    else:
        at, indent = _after_nearest(lines, found, table)
    new = [f"{indent}[{dotted(table)}]", f"{indent}  {dotted((key,))} = {literal(value)}"]
    return at, new if indent or at == 0 else ["", *new]


def _dotted_sibling(found: Sequence[Statement], table: Path) -> Statement | None:
    """The last key that defines *table*, or a table above it, by dots: TOML forbids a header for such a table."""
    for length in range(len(table), 1, -1):
        for statement in reversed(found):
            reaches_in = len(statement.table) < length < len(statement.path)
            if not statement.header and reaches_in and statement.path[:length] == table[:length]:
                return statement
    return None


def _after_nearest(lines: Sequence[str], found: Sequence[Statement], table: Path) -> tuple[int, str]:
    """The end of the section of the nearest table above *table*, and the indentation of its sub-tables."""
    for length in range(len(table) - 1, 0, -1):
        family = [s for s in found if s.table[:length] == table[:length]]
        if family:
            headers = [s for s in family if s.header]
            parents = [s for s in headers if s.path == table[:length]]
            children = [s for s in headers if len(s.path) == len(table)]
            if children:
                return family[-1].end, _indent(lines[children[-1].start])
            step = "  " * (len(table) - length) if parents and _indent(lines[parents[-1].start]) else ""
            return family[-1].end, (_indent(lines[parents[-1].start]) if parents else "") + step
    return len(lines), ""


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _inner_indent(lines: Sequence[str], found: Sequence[Statement], header: Statement) -> str:
    """How the keys below *header* are indented; two blanks more than the header if it has none."""
    for statement in found:
        if not statement.header and statement.table == header.path and statement.start >= header.end:
            return _indent(lines[statement.start])
    return _indent(lines[header.start]) + "  "


def _unset(text: str, table: Path, key: str) -> str:
    lines = lines_of(text)
    path = (*table, key)
    for statement in statements(text):
        if statement.header or path[: len(statement.path)] != statement.path:
            continue
        if statement.path == path:
            del lines[statement.start : statement.end]
        else:
            document = tomlkit.parse("".join(lines[statement.start : statement.end]))
            inner: Any = document
            for part in path[len(statement.table) : -1]:
                inner = inner[part]
            del inner[key]
            lines[statement.start : statement.end] = [tomlkit.dumps(document)]
        break
    return "".join(lines)


def _without_header(text: str, table: Path) -> str:
    lines = lines_of(text)
    for statement in statements(text):
        if statement.header and statement.path == table:
            start = statement.start
            # The blank line before it is ours as well where we put one: see _insertion.
            if start and not lines[start - 1].strip() and not _indent(lines[start]):
                start -= 1
            del lines[start : statement.end]
            break
    return "".join(lines)
