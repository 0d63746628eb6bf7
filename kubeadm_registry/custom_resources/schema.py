"""A structural schema, which an API server takes, from a pydantic model.

What the two cannot both say is an error here, with the path to it: an API server would refuse the whole definition, or,
worse, drop the part.

Sources: Kubernetes' documentation, "Extend the Kubernetes API with CustomResourceDefinitions", sections "Specifying a
structural schema" and "Validation"; for the keywords that there are, ``pkg/apis/apiextensions/v1/types_jsonschema.go``
of k8s.io/apiextensions-apiserver. Which of pydantic's constructs Kubernetes 1.36 refuses was tried one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from kubeadm_registry.config.rules import VALIDATIONS

Schema = dict[str, Any]

#: Keywords that mean the same to both.
_KEPT = {
    "type", "description", "enum", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "minItems",
    "maxItems", "multipleOf", "minProperties", "maxProperties", "required",
}  # fmt: skip
#: pydantic leaves the names of its own where a validator in Python stands before the constraint.
_OWN_NAMES = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
#: Those that an API server checks, of those that pydantic writes. It takes any other and checks nothing.
_FORMATS = {"date", "date-time"}
_LIST_TYPE = "x-kubernetes-list-type"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
#: Look-around, references to groups and ``\Z``, of which RE2 has none.
_NOT_RE2 = re.compile(r"\(\?(?:[=!>]|<[=!])|\\[1-9Z]")
_SCALARS = ("string", "integer", "number", "boolean")


class NotStructural(ValueError):
    """A part of a model that a structural schema cannot say; begins with the path to it."""


def structural(model: type[BaseModel], field: str = "") -> Schema:
    """The structural schema of *model*, or of its *field* alone, as the API server stores it. Raises NotStructural."""
    whole = model.model_json_schema(by_alias=True)
    definitions = whole.pop("$defs", {})
    return _Converter(definitions).convert(whole["properties"][field] if field else whole, field, ())


class _Converter:
    """Converts the parts of one schema, whose *definitions* they refer to."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def convert(self, schema: Schema, path: str, above: tuple[str, ...]) -> Schema:
        """*schema*, which stands at *path* inside of the definitions *above*, with all that it refers to in it."""
        schema, above = self._plain(schema, path, above)
        if schema.get("type") is None and not schema.keys() & {_PRESERVE, _INT_OR_STRING}:
            if schema.keys() - {"title", "description", "default"}:
                raise NotStructural(f"{path or 'the model'}: has no one type")
            schema[_PRESERVE] = True  # Any
        found: Schema = {}
        for key, value in schema.items():
            found |= self._keyword(_OWN_NAMES.get(key, key), value, path, above)
        if "default" in schema:
            found |= _default(schema["default"], found, path)
        _check_bounds(found, path)
        return _ordered(found)

    def _plain(self, schema: Schema, path: str, above: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
        """*schema* without a reference and without the null of an optional field; and what it is inside of then."""
        if (reference := schema.get("$ref")) is not None:
            name = reference.removeprefix("#/$defs/")
            if name in above:
                raise NotStructural(f"{path}: contains itself ({name})")
            return self._plain(_merged(self._definitions[name], _without(schema, "$ref")), path, (*above, name))
        if (options := schema.get("anyOf")) is not None:
            # An API server drops null where nothing says nullable, and then a key is as if it was not there.
            values = [option for option in options if option != {"type": "null"}]
            rest = _without(schema, "anyOf")
            if len(values) == 1:
                return self._plain(_merged(values[0], rest), path, above)
            if sorted(str(option.get("type")) for option in values) == ["integer", "string"]:
                if any(option.keys() - {"type"} for option in values):
                    raise NotStructural(f"{path}: a number or text cannot have constraints of its own")
                return {**rest, _INT_OR_STRING: True}, above
            raise NotStructural(f"{path}: is a union, of which every field would have to stand outside")
        return dict(schema), above

    def _keyword(self, key: str, value: Any, path: str, above: tuple[str, ...]) -> Schema:
        """What a keyword becomes. Raises NotStructural if there is nothing like it."""
        if key == "properties":
            prefix = f"{path}." if path else ""
            return {key: {name: self.convert(part, prefix + name, above) for name, part in value.items()}}
        if key in ("items", "additionalProperties") and isinstance(value, dict):
            return {key: self.convert(value, f"{path}[]", above)}
        if key in _CONVERTED:
            return _CONVERTED[key](value)
        if key in ("exclusiveMinimum", "exclusiveMaximum"):
            return {key.replace("exclusiveM", "m"): value, key: True}  # a number in JSON Schema, a flag here
        if key not in _KEPT and not key.startswith("x-kubernetes-"):
            raise NotStructural(f"{path}: {key} has no structural form")
        if key == "format" and value not in _FORMATS:
            raise NotStructural(f"{path}: the format {value} is not checked by an API server; use a pattern")
        if key == "pattern" and _NOT_RE2.search(value):
            raise NotStructural(f"{path}: the pattern {value} is not one of RE2")
        if key == "enum" and None in value:
            raise NotStructural(f"{path}: null cannot be one of the values")
        return {key: value}


#: Keywords that are gone, or another one. Unknown fields (additionalProperties: false) the server drops, or refuses
#: where the client asks for that, as kubectl does.
_CONVERTED: Mapping[str, Callable[[Any], Schema]] = {
    "title": lambda _: {},
    "default": lambda _: {},
    "description": lambda text: {"description": " ".join(text.split()).replace("``", "`")},
    "const": lambda value: {"enum": [value]},
    "uniqueItems": lambda _: {_LIST_TYPE: "set"},
    "additionalProperties": lambda others: {_PRESERVE: True} if others else {},
}


def _without(schema: Schema, key: str) -> Schema:
    return {name: value for name, value in schema.items() if name != key}


def _merged(below: Schema, beside: Schema) -> Schema:
    """A definition with what stands beside the reference to it, which wins; the rules of both count."""
    rules = [*below.get(VALIDATIONS, []), *beside.get(VALIDATIONS, [])]
    return {**below, **beside} | ({VALIDATIONS: rules} if rules else {})


def _default(value: Any, schema: Schema, path: str) -> Schema:
    """The default as the server wants it: without null, and without what the defaults inside of it say already."""
    if value is None:
        return {}
    bare = _bare(value, schema)
    if bare == {} and not _has_defaults(schema):
        return {}  # an empty object in every object, and in lists, where kubectl apply would take it for a change
    if isinstance(bare, dict) and (missing := set(schema.get("required", ())) - bare.keys()):
        raise NotStructural(f"{path}: its default lacks {', '.join(sorted(missing))}")
    return {"default": bare}


def _has_defaults(schema: Schema) -> bool:
    return any("default" in part for part in schema.get("properties", {}).values())


def _bare(value: Any, schema: Schema) -> Any:
    if not isinstance(value, dict):
        return value
    inside = schema.get("properties", {})
    kept = {name: _bare(item, inside.get(name, {})) for name, item in value.items() if item is not None}
    return {name: item for name, item in kept.items() if item != inside.get(name, {}).get("default")}


def _check_bounds(schema: Schema, path: str) -> None:
    """The cost of rules is estimated by the largest object that there may be, and one without bounds is refused."""
    for kind, bound in (("string", "maxLength"), ("array", "maxItems")):
        known = schema.keys() & {bound, "enum", "format"}
        if schema.get("type") == kind and not known:
            raise NotStructural(f"{path}: has no {bound}, without which the cost of rules has no bound")
    if "additionalProperties" in schema and "maxProperties" not in schema:
        raise NotStructural(f"{path}: has no maxProperties, without which the cost of rules has no bound")
    if "additionalProperties" in schema and "properties" in schema:
        raise NotStructural(f"{path}: has fields of its own and any others, which exclude each other")
    if schema.get("type") == "array":
        if "items" not in schema:
            raise NotStructural(f"{path}: does not say what its items are")
        _check_list(schema, path)


def _check_list(schema: Schema, path: str) -> None:
    items = schema["items"]
    kind = schema.get(_LIST_TYPE)
    if kind == "set" and items.get("type") not in _SCALARS:
        raise NotStructural(f"{path}: is a set of objects; make it a list map with a key")
    if kind == "map":
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            if key not in items.get("required", ()) and "default" not in items.get("properties", {}).get(key, {}):
                raise NotStructural(f"{path}: its key {key} is neither required nor has it a default")


#: Keywords in the order in which a person reads them.
_ORDER = ("description", "type", "default", "enum", "required", "properties", "items", "additionalProperties")


def _ordered(schema: Schema) -> Schema:
    return dict(_pairs(schema))


def _pairs(schema: Schema) -> Iterator[tuple[str, Any]]:
    nested = ("properties", "items", "additionalProperties", VALIDATIONS)
    first = [key for key in _ORDER if key in schema and key not in nested]
    yield from ((key, schema[key]) for key in first)
    yield from sorted((key, value) for key, value in schema.items() if key not in first and key not in nested)
    yield from ((key, schema[key]) for key in (VALIDATIONS, *nested[:3]) if key in schema)
