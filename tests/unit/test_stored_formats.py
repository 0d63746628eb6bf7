"""Every record that releases share, as an earlier one wrote it, and each with one key more and one key less.

A record has a Kind (``tests/unit/stored.py``). What comes back from a release that reads and writes it must hold every
key that the release does not know; a key that is missing has a default, or is named in an error with a code.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import kubeadm_registry
from kubeadm_registry.access import questions
from kubeadm_registry.agent import formats
from kubeadm_registry.agent.formats import Newer
from kubeadm_registry.backup import contents, file
from kubeadm_registry.bundle import versions
from kubeadm_registry.errors import Error
from kubeadm_registry.formats import Damaged, NewerFormat
from kubeadm_registry.images import journal
from kubeadm_registry.phases.upgrade_plan import RECORDS
from tests.unit.stored import KINDS, SAMPLES, UNREAD, Keys, Kind

PACKAGE = Path(kubeadm_registry.__file__).parent


def inside(document: Any, path: Keys) -> Any:
    for key in path:
        document = document[key]
    return document


def keys(kind: Kind) -> Iterator[Keys]:
    """The path of each key in the objects of a record."""
    for path in kind.objects:
        for key in inside(kind.document(), path):
            if key != "format":
                yield (*path, key)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind.sample}: {kind.format.name}")
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def test_what_an_earlier_release_wrote_is_read_and_nothing_of_it_is_lost(kind: Kind) -> None:
    document, sample = kind.document(), json.loads(kind.content())
    assert document.pop("format").keys() == {"version", "minReader", "minWriter"}
    sample.pop("format", None)
    assert document == kind.today(sample)


def test_one_key_more_is_kept_and_written_back(kind: Kind) -> None:
    for path in kind.objects:
        document = kind.document()
        inside(document, path)["of_a_newer_release"] = {"deep": [1, {"x": None}]}
        written = json.loads(kind.back(json.dumps(document).encode()))
        if not kind.keeps:
            # It hinders nobody, and whoever writes the next one knows nothing of it.
            inside(written, path).pop("of_a_newer_release", None)
            del inside(document, path)["of_a_newer_release"]
        assert written == document, path


def test_one_key_less_has_a_default_or_is_named(kind: Kind) -> None:
    refused = set()
    for path in keys(kind):
        document = deepcopy(kind.document())
        del inside(document, path[:-1])[path[-1]]
        try:
            content = kind.back(json.dumps(document).encode())
        except (Error, Damaged) as error:
            code, said = getattr(error, "code", "Damaged"), str(error)
            assert code == kind.code, path
            assert str(path[-1]) in said or "both parts" in said or "is not that of its deletions" in said, said
            assert getattr(error, "hint", "its caller's")
            refused.add(path)
            continue
        if content == UNREAD:
            refused.add(path)
        else:
            assert kind.disposable or path[-1] in inside(json.loads(content), path[:-1]), path
    assert refused == kind.needed


@pytest.mark.parametrize("key", ["minReader", "minWriter"])
def test_what_asks_for_a_newer_release_is_not_written(kind: Kind, key: str) -> None:
    document = kind.document()
    document["format"][key] = 99
    content = json.dumps(document).encode()
    if key == "minWriter" and not kind.asks:
        written = json.loads(kind.back(content))
        assert {**written, "format": 0} == {**document, "format": 0}, "it is read"
        return
    try:
        written = kind.back(content)
    except NewerFormat as error:
        assert "a newer release wrote" in error.message
        assert error.hint == "use a newer kubeadm-registry"
    except Newer as error:
        assert "a newer release wrote" in str(error)
    except Error as error:  # as one that was sent says it, or of the bundle's kind
        assert (error.code, error.hint) == ("NewerFormat", "use a newer kubeadm-registry")
    else:
        assert written in (UNREAD, content), "it is left as it is"


def test_a_higher_version_alone_is_read_and_stays(kind: Kind) -> None:
    document = kind.document()
    document["format"] = {**document["format"], "version": 99, "more": "words"}
    written = json.loads(kind.back(json.dumps(document).encode()))
    if not kind.keeps:
        written["format"], document["format"] = {}, {}
    assert written == document


def in_package() -> dict[str, formats.Format]:
    """Every Format of the package, by its name."""
    found: dict[str, formats.Format] = {}
    calls = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if "Format(" not in text:
            continue
        calls += len(re.findall(r"(?<!class )(?<![A-Za-z_])(?:formats\.)?Format\(", text))
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for value in vars(importlib.import_module(name)).values():
            several = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
            found |= {one.name: one for one in several if isinstance(one, formats.Format)}
    assert calls == len(found), "one is made inside a function, or two have one name"
    return found


#: A bundle is read by tests of its own.
ELSEWHERE = {versions.BUNDLE.name}


def test_every_format_has_a_sample_and_is_tried() -> None:
    assert in_package().keys() == {kind.format.name for kind in KINDS} | ELSEWHERE


def test_every_sample_is_tried_here_or_elsewhere() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parents[1].glob("*/test_*.py"))
    names = {str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*") if path.is_file()}
    here = {kind.sample for kind in KINDS} | {"README", "0.2/backup.key"}
    assert here < names
    assert {name for name in names - here if f'{Path(name).name}"' not in texts} == set()


def test_the_way_back_knows_every_record_on_nodes_and_in_the_registry() -> None:
    """The others are a workstation's files and messages."""
    others = {versions.BUNDLE, journal.FORMAT, file.FORMAT, contents.FORMAT, questions.QUESTION, questions.ANSWER}
    assert {one.name for one in RECORDS} == in_package().keys() - {one.name for one in others}
