"""The rules for records that several releases read and write, with the agent's errors and with the library's."""

from __future__ import annotations

import json

import pytest

from kubeadm_registry.agent import formats as rules
from kubeadm_registry.formats import HINT, Damaged, Format, Found, NewerFormat, split

FORMAT = Format("the thing", version=2, min_reader=1, min_writer=2)


def stamped(version: int, reader: int, writer: int, **values: object) -> dict[str, object]:
    return {"format": {"version": version, "minReader": reader, "minWriter": writer}, **values}


def test_a_record_says_what_it_asks_of_others() -> None:
    written = json.loads(FORMAT.render({"a": 1}))
    assert written == stamped(2, 1, 2, a=1)
    assert next(iter(written)) == "format"
    assert FORMAT.parse(FORMAT.render({"a": 1})).values == {"a": 1}


def test_a_record_without_the_key_is_of_version_1() -> None:
    found = FORMAT.parse(b'{"a": 1}')
    assert found == Found({"a": 1})
    assert FORMAT.seal(found.values, found) == stamped(2, 1, 2, a=1)


def test_an_older_release_writes_back_what_a_newer_one_asked_and_said() -> None:
    newer = stamped(7, 2, 2, a=1, b=[2])
    newer["format"]["also"] = "x"  # type: ignore[index]
    found = FORMAT.open(newer)
    assert FORMAT.may_write(found)
    assert FORMAT.seal({**found.values, "a": 3}, found) == {**newer, "a": 3}


def test_an_older_release_only_reads_what_asks_for_a_newer_writer() -> None:
    found = FORMAT.open(stamped(3, 1, 3, a=1))
    assert found.values == {"a": 1}
    assert not FORMAT.may_write(found)
    with pytest.raises(NewerFormat) as caught:
        FORMAT.render(found.values, found)
    assert caught.value.code == "NewerFormat"
    assert caught.value.message == (
        "a newer release wrote the thing: version 3 of its format is needed to write it, and this release has version 2"
    )
    assert caught.value.hint == HINT == "use a newer kubeadm-registry"


def test_an_older_release_refuses_what_asks_for_a_newer_reader() -> None:
    for read in (FORMAT.open, lambda document: FORMAT.parse(json.dumps(document))):
        with pytest.raises(NewerFormat, match="version 3 of its format is needed to read it") as caught:
            read(stamped(3, 3, 3))
        assert caught.value.hint == HINT


def test_the_agent_has_the_same_rules_without_the_library() -> None:
    plain = rules.Format("the thing", version=2)
    with pytest.raises(rules.Newer, match="needed to read it"):
        plain.parse(json.dumps(stamped(3, 3, 3)))
    with pytest.raises(rules.Newer, match="needed to write it"):
        plain.seal({}, plain.open(stamped(3, 1, 3)))


@pytest.mark.parametrize(
    ("content", "words"),
    {
        "nothing": (b"", "not JSON"),
        "cut": (b'{"a":', "not JSON"),
        "not text": (b"\xff\xfe", "not JSON"),
        "a list": (b"[]", "not a JSON object"),
        "too deep": (b'{"a":' * 100_000, "nested too deeply"),
        "a stamp that is a number": (b'{"format": 2}', "format is not a JSON object"),
        "a version that is text": (b'{"format": {"version": "2"}}', "format.version is not a positive whole number"),
        "a version that is true": (b'{"format": {"minReader": true}}', "format.minReader is not"),
        "version 0": (b'{"format": {"minWriter": 0}}', "format.minWriter is not"),
    }.values(),
)
def test_what_is_no_record_is_damaged_and_says_why(content: bytes, words: str) -> None:
    with pytest.raises(Damaged, match=words):
        FORMAT.parse(content)


def test_keys_are_split_into_known_and_kept() -> None:
    assert split({"a": 1, "b": 2, "c": 3}, ("a", "c", "d")) == ({"a": 1, "c": 3}, {"b": 2})
