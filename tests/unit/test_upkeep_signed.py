"""Records in the registry: how they are packed, and what may be in them."""

from __future__ import annotations

import pytest

from kubeadm_registry.errors import Error
from kubeadm_registry.images import artifacts
from kubeadm_registry.upkeep import signed
from kubeadm_registry.upkeep.signed import REPOSITORY, Record
from tests.unit.fake_images import Repositories
from tests.unit.fake_registry import connector

pytest_plugins = ["tests.unit.image_site"]

RECORD = Record("thing", "the record of things", "ThingDamaged", "make it again")


def test_what_comes_in_pieces_is_read_as_one(fake: Repositories) -> None:
    with connector(fake)() as registry:
        first = RECORD.write(registry, "key", (b"one ", b"", b"two"))
        assert RECORD.read(registry, "key") == b"one two"
        assert first == registry.digest(REPOSITORY, "thing")
        assert RECORD.write(registry, "key", b"one two") != first, "the executor deletes earlier ones by their digest"
        assert RECORD.read(registry, "key") == b"one two"


@pytest.mark.parametrize("limit", ["LARGEST", "_LARGEST_LAYER"])
def test_what_could_not_be_read_again_is_not_written(
    fake: Repositories,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    with connector(fake)() as registry:
        before = RECORD.write(registry, "key", b"one")
        monkeypatch.setattr(signed, limit, 100)
        with pytest.raises(Error) as caught:
            RECORD.write(registry, "key", (bytes(range(256)) for _ in range(10**9)))
        assert caught.value.code == "RecordTooLarge"
        assert registry.digest(REPOSITORY, "thing") == before


@pytest.mark.parametrize("mac", ["", "0" * 64, "\u00e4\u202e"])
def test_what_others_wrote_is_damaged(fake: Repositories, mac: str) -> None:
    """Whoever may push can put anything there, and Python compares no other text than ASCII."""
    with connector(fake)() as registry:
        notes = {signed.MAC: mac}
        artifacts.write(registry, REPOSITORY, "thing", b"x", kind="a/b", media_type="a/b", annotations=notes)
        with pytest.raises(Error, match="is damaged: it was not written by a node of this registry") as caught:
            RECORD.read(registry, "key")
    assert caught.value.code == "ThingDamaged"
