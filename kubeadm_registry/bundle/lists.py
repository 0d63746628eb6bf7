"""Names of images in files: lists with one name a line, and manifests of Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kubeadm_registry.bundle import files
from kubeadm_registry.bundle.failures import refused
from kubeadm_registry.oci.references import in_pod, told

_MANIFESTS = (".yaml", ".yml", ".json")
#: A list or manifest is text that people read; beyond this it is something else.
_LONGEST = 64 * 2**20
#: Wrong names that are told: a log that was taken for a list has a million.
_MOST = 50

_Fastest = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Fastest):  # type: ignore[misc,valid-type]
    """Reads text and null alone: numbers, dates and the like name no image, and PyYAML cannot read all of them.

    ``=`` is a value of YAML 1.1 that it has nothing for, and stands in the custom resources of Prometheus. A date with
    month 13 ends in a ValueError.
    """


for _tag in ("bool", "int", "float", "binary", "timestamp", "value", "merge"):
    # An object of its own for each, since they may be keys as well, and none of them may hide another.
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda _loader, _node: object())


def names_in(path: Path) -> list[str]:
    """The full names of the images in *path*: a list, a file of manifests, or a directory of such files; sorted.

    A list has one name a line, and comments from ``#`` on; with comments alone it has none, as ``images wanted`` writes
    it where nothing is missing. In manifests every ``image`` counts, wherever it stands, so that custom resources count
    too; short names mean what they mean to containerd. Raises BundleError that tells of what is no name, and where.
    """
    names: set[str] = set()
    is_list = False
    wrong, hint = [], "use a full name, such as registry.k8s.io/pause:3.10"
    for file in _files(path):
        for place, text in _texts(file):
            name = in_pod(text)
            if not text:
                is_list = True
            elif name is None:
                wrong.append(f"{place}: {text[:200]!r} is not a valid image name")
                if text.startswith("apiVersion:"):
                    hint = "write manifests to a file with the suffix .yaml, .yml or .json"
            else:
                names.add(name)
    if wrong:
        more = [f"and {len(wrong) - _MOST} more"] if len(wrong) > _MOST else []
        raise refused("\n".join([*wrong[:_MOST], *more]), hint=hint)
    if not names and not is_list:
        raise refused(f"{path} lists no images", hint="pass a list with one name per line, or manifests with `image:`")
    return sorted(names)


def told_in(path: Path) -> list[str]:
    """The full names of the images that containers in *path*, manifests as for ``names_in``, are told of; sorted.

    By command, arguments and environment: a controller makes pods of them, and no ``image`` names them. A list has
    none. Raises BundleError.
    """
    names: set[str] = set()
    for file in filter(_is_manifest, _files(path)):
        for value in _mappings(file, _content(file)):
            words = [word for key in ("command", "args") for word in _items(value.get(key)) if isinstance(word, str)]
            pairs = [(one.get("name"), one.get("value")) for one in _items(value.get("env")) if isinstance(one, dict)]
            environment = [(name, said) for name, said in pairs if isinstance(name, str) and isinstance(said, str)]
            names |= {whole for name in told(words, environment) if (whole := in_pod(name))}
    return sorted(names)


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _files(path: Path) -> list[Path]:
    """*path*, or the manifests in it. Raises BundleError if there are none."""
    if not path.is_dir():
        return [path]
    found = _manifests_below(path)
    if not found:
        raise refused(
            f"{path} contains neither an OCI image layout nor manifests",
            hint="check the path; manifests have the suffix .yaml, .yml or .json",
        )
    return found


def _manifests_below(folder: Path) -> list[Path]:
    """The manifests in *folder*, sorted. Raises BundleError if a part of it cannot be listed."""
    try:
        files_below = [Path(where, name) for where, _, names in files.walk(folder) for name in names]
    except OSError as error:
        raise refused(f"cannot read {error.filename}: {error.strerror}", hint="check its permissions") from error
    return sorted(file for file in files_below if _is_manifest(file) and file.is_file())


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """What stands where a name should be, with the place; nothing for a comment in a list."""
    content = _content(file)
    if not _is_manifest(file):
        for number, line in enumerate(content.splitlines(), start=1):
            text, comment, _ = line.partition("#")
            if text.strip() or comment:
                yield f"{file}:{number}", text.strip()
        return
    for value in _mappings(file, content):
        image = value.get("image")
        if isinstance(image, dict):  # a volume that is an image
            image = image.get("reference")
        if isinstance(image, str) and image:
            yield str(file), image


def _content(file: Path) -> str:
    """The text of *file*. Raises BundleError."""
    try:
        return files.text(file, _LONGEST)
    except OSError as error:
        raise refused(
            f"cannot read {file}: {error.strerror}",
            hint="pass a text file, or images in an OCI layout or an archive, which must be a regular file and no pipe",
        ) from error


def _is_manifest(file: Path) -> bool:
    return file.suffix.lower() in _MANIFESTS


def _documents(file: Path, content: str) -> list[Any]:
    """What the manifests in *content* say. Raises YAMLError, RecursionError."""
    if file.suffix.lower() == ".json":
        try:
            return [json.loads(content)]
        except ValueError:
            pass  # several documents, or YAML all the same
    return list(yaml.load_all(content, Loader=_Loader))


def _mappings(file: Path, content: str) -> Iterator[dict[Any, Any]]:
    """Every mapping in the manifests *content* of *file*, wherever it stands. Raises BundleError."""
    try:
        documents = _documents(file, content)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        what = getattr(error, "problem", None) or "it is nested too deeply"
        if what == "found unhashable key":
            what = "a key must be plain text"
        if isinstance(error, yaml.reader.ReaderError):  # its position is in bytes
            line = content.encode()[: error.position].count(b"\n") + 1
            where = f"{file}:{line}"
            what = f"the character U+{error.character:04X} is not allowed"
        raise refused(
            f"{where}: not valid YAML: {what}",
            hint="render templates first: `helm template ... > FILE`, `kubectl kustomize ... > FILE`",
        ) from error
    # An alias in YAML makes one value stand in many places: each value is looked at once.
    seen: set[int] = set()
    waiting: list[Any] = list(reversed(documents))
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list):
            waiting.extend(reversed(value))
            continue
        yield value
        waiting.extend(reversed(value.values()))
