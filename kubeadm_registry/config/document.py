"""Reading a YAML file into one frozen model: the cluster file, and other files that users write the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kubeadm_registry.config import yamlfile
from kubeadm_registry.config.explain import explain
from kubeadm_registry.config.yamlfile import NotYaml
from kubeadm_registry.disk import read_text
from kubeadm_registry.errors import ConfigError, ConfigProblem

#: Bytes: far more than such a file needs, little enough to be read at once.
_LARGEST = 256 * 1024
_MOST_PROBLEMS = 50
Read = TypeVar("Read", bound=BaseModel)


def text_of(path: Path, kind: str, option: str) -> str:
    """The text of the file *path*, which must be a *kind* ("cluster file") and is named by *option*.

    Raises ConfigError (ConfigUnreadable).
    """
    try:
        return read_text(path, _LARGEST)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot read {path}: {why}", hint=f"pass the file with {option} FILE", code="ConfigUnreadable"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint=f"check that this is the {kind}", code="ConfigUnreadable"
        ) from error


def read(text: str, name: str, *, hint: str, smallest: str) -> Mapping[str, Any]:
    """The mapping that *text* (YAML) is; *name* stands in errors, *hint* and the *smallest* file help.

    Raises ConfigError (ConfigNotYaml, ConfigInvalid).
    """
    try:
        document = yamlfile.read(text, name)
    except NotYaml as error:
        raise ConfigError(f"{name} is not valid YAML: {error}", hint=hint, code="ConfigNotYaml") from error
    if not isinstance(document, Mapping):
        wrong = "is empty" if document is None else "does not contain a mapping"
        raise ConfigError(f"{name} {wrong}", hint=f"this is the smallest file:\n\n{smallest}")
    return document


def validated(
    model: type[Read],
    document: Mapping[str, Any],
    name: str,
    *,
    hint: str,
    together: Callable[[Mapping[str, Any]], Iterable[ConfigProblem]] = lambda document: (),
    context: Mapping[str, Any] | None = None,
) -> Read:
    """The *model* that *document* describes; *name* stands in errors, and validators get *context*.

    *together* finds problems of several values even where others are wrong, for which pydantic looks in good values
    only. Raises ConfigError with every problem at once.
    """
    try:
        return model.model_validate(document, by_alias=True, by_name=False, context=context)
    except ValidationError as error:
        found = list(dict.fromkeys([*explain(error, model), *together(document)]))
        more = [ConfigProblem("", f"and {len(found) - _MOST_PROBLEMS} more")] if len(found) > _MOST_PROBLEMS else []
        raise ConfigError(f"{name} is not valid", problems=[*found[:_MOST_PROBLEMS], *more], hint=hint) from None
