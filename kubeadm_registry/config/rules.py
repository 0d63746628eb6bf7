"""Rules that a Kubernetes API server checks, written beside the fields whose validators they repeat.

pydantic's validators are Python, of which a JSON schema knows nothing. Each has its rule in CEL here, with the sentence
that the validator says, so that ``kubectl apply`` refuses what ``config validate`` refuses, in the same words.

Sources: Kubernetes' documentation, "Extend the Kubernetes API with CustomResourceDefinitions", section "Validation
rules"; "Common Expression Language in Kubernetes" for the functions (ip, isIP, find, split).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True)
class Rule:
    """An expression in CEL over ``self``, and ``oldSelf`` if it is about changes, that must be true."""

    cel: str
    message: str
    computed: bool = False
    """Whether the message is itself CEL: the API server shows no value beside a message about a list or mapping."""
    field: str = ""
    """The path of the field that errors name, from where the rule stands: ``.vip.address``. Empty: that place."""

    def as_json(self) -> dict[str, str]:
        """An item of ``x-kubernetes-validations``."""
        key = "messageExpression" if self.computed else "message"
        return {"rule": self.cel, key: self.message} | ({"fieldPath": self.field} if self.field else {})


class OnServer:
    """Metadata of an annotated type: what its structural schema holds besides what pydantic knows.

    *rules* go to ``x-kubernetes-validations``, *keywords* (``maxLength``, ``x-kubernetes-list-type``) beside them.
    pydantic itself checks neither.
    """

    def __init__(self, *rules: Rule, **keywords: Any) -> None:
        self._rules = rules
        self._keywords = keywords

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """pydantic's protocol: the schema that *handler* makes of the type, with our rules after those that it has."""
        schema = {**handler(core), **self._keywords}
        if self._rules:
            schema[VALIDATIONS] = [*schema.get(VALIDATIONS, []), *(rule.as_json() for rule in self._rules)]
        return schema


def text(value: str) -> str:
    """*value* as a literal in CEL, whose escapes are those of JSON."""
    return json.dumps(value, ensure_ascii=False)


def matches(pattern: str, value: str = "self") -> str:
    """CEL for "*value* as a whole matches *pattern*", which is in the common part of Python's syntax and RE2's."""
    return f"{value}.matches({text(f'^(?:{pattern})$')})"


def matching(pattern: str, message: str) -> Rule:
    """A text that matches *pattern* as a whole."""
    return Rule(matches(pattern), message)


def same_ip(one: str, other: str) -> str:
    """CEL for "*one* and *other* are one address", whatever their spelling; false if either is no address."""
    return f"(isIP({one}) && isIP({other}) && ip({one}) == ip({other}))"


def same_family(one: str, other: str) -> str:
    """CEL for "*one* and *other* are of one family"; true if either is no address, which another rule tells."""
    return f"(!isIP({one}) || !isIP({other}) || ip({one}).family() == ip({other}).family())"


def other_family(one: str, other: str) -> str:
    """CEL for "*one* and *other* are of different families"; true if either is no address."""
    return f"(!isIP({one}) || !isIP({other}) || ip({one}).family() != ip({other}).family())"
