"""The part of JSONPath that names a place in an object: ``.spec.templates[*].container.image``.

As kubectl writes it (https://kubernetes.io/docs/reference/kubectl/jsonpath/), without filters, slices, unions and
recursion: a path that says where an image stands needs none of these, and can say when it stands elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from kubeadm_registry.errors import ConfigError
from kubeadm_registry.printable import shown

ALL: Final = None
"""The step ``[*]`` or ``.*``: all items of a list, or all values of a mapping."""
Step = str | int | None

#: One step, each form of it in its own group. kubectl writes a key with dots in it as ``.a\\.b``, the standard as
#: ``['a.b']``.
_KEY, _ALL, _INDEX, _QUOTED = r"(?:[A-Za-z0-9_/-]|\\\.)+", r"\.\*|\[\*\]", "[0-9]{1,6}", r"[^'\\]+"
_STEP = re.compile(rf"\.(?P<key>{_KEY})|(?P<all>{_ALL})|\[(?P<index>{_INDEX})\]|\['(?P<quoted>{_QUOTED})'\]")
#: A whole path as a policy has it, without braces; RE2, by which API servers match, reads it as well.
PATTERN = rf"\$?(?:\.{_KEY}|{_ALL}|\[{_INDEX}\]|\['{_QUOTED}'\])+"
PATTERN_TEXT = "must be a JSONPath without filters, such as .spec.templates[*].container.image"
_HINT = (
    "write it as .spec.image, .spec.templates[*].container.image or ['a.key'].image; filters and '..' are not supported"
)


class NotThere(Exception):
    """The object has something else where the path goes on; the message says where, and what was expected."""


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A place, or several, in an object: the *steps* that lead there; *text* is what the user wrote."""

    text: str
    steps: tuple[Step, ...]

    def find(self, value: Any) -> Iterator[Any]:
        """What *value*, decoded JSON, has there; nothing for what is null or absent on the way.

        Raises NotThere for a value of another type than the path needs.
        """
        yield from _find(value, self.steps, "")

    def texts(self, value: Any) -> Iterator[str]:
        """The texts that *value* has there, also those in lists; not empty ones. Raises NotThere for anything else."""
        for found in self.find(value):
            for each in found if isinstance(found, list) else [found]:
                if not isinstance(each, str):
                    raise NotThere(f"{self.text} is {_type(each)}, expected a string")
                if each:
                    yield each


def parse(text: str) -> JsonPath:
    """The path that *text* writes, in braces or not, with or without ``$``. Raises ConfigError (JsonPathInvalid)."""
    rest = text.strip()
    if rest.startswith("{") and rest.endswith("}"):
        rest = rest[1:-1].strip()
    rest = rest.removeprefix("$")
    steps: list[Step] = []
    position = 0
    while position < len(rest):
        if (found := _STEP.match(rest, position)) is None:
            break
        steps.append(_step(found))
        position = found.end()
    if not steps or position < len(rest):
        why = f"{shown(rest[position:], 40)} cannot be read" if steps or rest else "it is empty"
        raise ConfigError(f"{shown(text)} is not a valid JSONPath: {why}", hint=_HINT, code="JsonPathInvalid")
    return JsonPath(text, tuple(steps))


def _step(found: re.Match[str]) -> Step:
    if found["all"]:
        return ALL
    if found["index"]:
        return int(found["index"])
    return found["quoted"] or found["key"].replace("\\.", ".")


def _find(value: Any, steps: tuple[Step, ...], where: str) -> Iterator[Any]:
    if value is None:
        return
    if not steps:
        yield value
        return
    step, rest = steps[0], steps[1:]
    if step is ALL:
        if not isinstance(value, (list, Mapping)):
            raise _other(where, value, "a list")
        items = enumerate(value) if isinstance(value, list) else value.items()
        for key, each in items:
            yield from _find(each, rest, f"{where}[{key}]")
    elif isinstance(step, int):
        if not isinstance(value, list):
            raise _other(where, value, "a list")
        yield from _find(value[step] if step < len(value) else None, rest, f"{where}[{step}]")
    else:
        if not isinstance(value, Mapping):
            raise _other(where, value, "an object")
        yield from _find(value.get(step), rest, f"{where}.{step}")


def _other(where: str, value: object, expected: Literal["a list", "an object"]) -> NotThere:
    return NotThere(f"{where or 'the object'} is {_type(value)}, expected {expected}")


def _type(value: object) -> str:
    """What JSON calls the type of *value*."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "a boolean"
    return "a string" if isinstance(value, str) else "a number"
