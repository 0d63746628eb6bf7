"""Tags that are versions, by Semantic Versioning 2.0.0 (https://semver.org), with or without a leading ``v``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Level = Literal["major", "minor", "patch"]
#: As long as a whole tag (distribution-spec): builds count up, or have the time of day in a number.
_LONGEST = 128
_NUMBER = rf"(?:0|[1-9][0-9]{{0,{_LONGEST - 1}}})"
#: ``+`` cannot be in a tag; Helm writes ``_`` for it.
_VERSION = re.compile(
    rf"v?(?P<major>{_NUMBER})\.(?P<minor>{_NUMBER})\.(?P<patch>{_NUMBER})"
    r"(?:-(?P<pre>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:_[0-9A-Za-z.-]+)?"
)
_PARTIAL = re.compile(rf"v?({_NUMBER})(?:\.({_NUMBER}))?")
_NUMBERS = {"major": 1, "minor": 2, "patch": 3}
#: A version, or the beginning of one.
Numbers = tuple[object, ...]
#: What versions are ordered by: the numbers, whether it is a release, and the parts of its pre-release.
Key = tuple[int, int, int, bool, tuple[tuple[int, int, str], ...]]


def key(tag: str) -> Key | None:
    """The precedence of the version *tag* (semver.org, section 11); None if it is not a complete version."""
    found = _VERSION.fullmatch(tag) if len(tag) <= _LONGEST else None
    if found is None:
        return None
    parts = found["pre"].split(".") if found["pre"] else []
    pre = tuple((0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts)
    return int(found["major"]), int(found["minor"]), int(found["patch"]), not parts, pre


def newest(tags: Iterable[str], count: int, level: Level) -> set[str]:
    """The *tags* that are among the *count* newest versions of each major, minor or patch version.

    For ``major`` and ``minor`` releases are counted, without regard to suffixes: ``1.2.3-alpine`` and ``1.2.3-rc.1``
    stay with ``1.2.3``, and do not count where there is a release. For ``patch`` every pre-release counts. A part of a
    version (``1.36``, ``v2``), which moves with the releases, is kept if there is a version that begins with it.
    """
    versions = {tag: found for tag in tags if (found := key(tag)) is not None}
    groups: dict[Numbers, set[Key]] = {}
    for version in versions.values():
        groups.setdefault(version[: _NUMBERS[level]], set()).add(version)
    oldest = {group: _oldest(held, count, level) for group, held in groups.items()}
    kept = {tag for tag, found in versions.items() if _counted(found, level) >= oldest[found[: _NUMBERS[level]]]}
    begun = {found[:length] for found in versions.values() for length in (1, 2)}
    return kept | {tag for tag in tags if (numbers := _partial(tag)) is not None and numbers in begun}


def _counted(version: Key, level: Level) -> tuple[object, ...]:
    return version if level == "patch" else version[:3]


def _oldest(held: set[Key], count: int, level: Level) -> tuple[object, ...]:
    """The oldest version of a group that is kept."""
    releases = {version for version in held if version[3]}
    counted = held if level == "patch" else releases or held
    ranked = sorted({_counted(version, level) for version in counted}, reverse=True)
    return ranked[:count][-1]


def _partial(tag: str) -> Numbers | None:
    found = _PARTIAL.fullmatch(tag)
    return None if found is None else tuple(int(part) for part in found.groups() if part is not None)
