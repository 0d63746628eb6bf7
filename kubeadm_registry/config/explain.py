"""What pydantic finds wrong in a file, in our words: by the path to the value, with what it must be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kubeadm_registry.config.contradictions import Contradiction
from kubeadm_registry.errors import ConfigProblem
from kubeadm_registry.printable import counted, printable, shown

#: As much of a key as is shown, and compared with those that are known.
_LONGEST_KEY = 60
_MAPPING = "must be a mapping of keys to values"
#: What pydantic's kinds of problems mean, with what it tells of them.
_RULES = {
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} (it has {actual_length})",
    "too_long": "must have at most {max_length} (it has {actual_length})",
    "missing": "is missing",
}
#: Where the value itself says nothing more.
_SAYS_ALL = ("missing", "too_short", "too_long")


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[ConfigProblem]:
    """Each problem that *error* of a *model* holds."""
    found = error.errors(include_url=False)
    for item in found:
        place = item["loc"]
        if item["type"] == "too_short" and any(place == other["loc"][: len(place)] for other in found if other != item):
            continue  # pydantic does not count items that are wrong, and those are told anyway
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Contradiction):
            yield from (ConfigProblem(f"{path_of(place)}.{path}", text) for path, text in cause.problems)
        else:
            yield ConfigProblem(path_of(place), _text(item, model))


def _text(item: Any, model: type[BaseModel]) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(item['loc'], model)}"
    if value is None:
        return "has no value"
    if isinstance(context.get("error"), ValueError):
        text = str(context["error"])
    elif kind in _RULES:
        items = {key: counted(context[key], "item") for key in ("min_length", "max_length") if key in context}
        text = _RULES[kind].format(**context | items)
    else:
        text = item["msg"][0].lower() + item["msg"][1:]
    if kind == "string_type" and isinstance(value, int):
        text += ": put it in quotes"
    return text if kind in _SAYS_ALL else f"{text} (it is {_named(value)})"


def _named(value: object) -> str:
    """A value as YAML has it, or what kind of collection it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else shown(value)


def path_of(location: tuple[int | str, ...]) -> str:
    """``spec.nodes[0].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{_key(part)}"
    return text.lstrip(".")


def _key(text: str) -> str:
    """The key *text* as it is shown: on one line, and there if it is empty."""
    return printable(text[:_LONGEST_KEY]).replace("\n", "\\n") or '""'


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    above: type[BaseModel] | None = model
    for part in location[:-1]:
        if isinstance(part, int) or above is None:
            continue
        above = next((model_of(f.annotation) for n, f in above.model_fields.items() if part in (n, f.alias)), None)
    if above is None:
        return ""
    known = [field.alias or name for name, field in above.model_fields.items()]
    written = str(location[-1])[:_LONGEST_KEY]
    # camelCase is what most other spellings mean.
    same = {name.lower(): name for name in known}.get(written.replace("_", "").replace("-", "").lower())
    close = [same] if same else difflib.get_close_matches(written, known, n=1)
    return f", did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"


def model_of(annotation: object) -> type[BaseModel] | None:
    """The model in the annotation of a field (``tuple[Node, ...]``: Node); None if it is a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := model_of(argument))), None)
