"""Pushes while the executor deletes: at every request of it somebody pushes, and what is lost is looked for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import pytest

from kubeadm_registry import pki
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.executor import images
from kubeadm_registry.executor.images import Skipped
from kubeadm_registry.images.tombstone import TOMBSTONE_DIGEST
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.registry import Api
from kubeadm_registry.retention.trash import Trashed, trash_tag
from tests.unit.fake_images import Repositories, ScopedHandler, Store
from tests.unit.fake_registry import connector, serving

Request = tuple[str, str]
"""Its method, and the last part of its path."""


class App:
    """The repository ``app``: an index of two images with the tags v1 and also, and another image, which is latest."""

    def __init__(self, registry: Repositories, at: Api) -> None:
        self.registry, self.at = registry, at
        self.begin()

    def begin(self, *, trashed: bool = False) -> None:
        """Begin anew. *trashed*: the index is in the trash, and complete."""
        self.registry.store.clear()
        self.registry.image("kubeadm-registry/canary", "v1")
        found = {name: self.registry.image("app", layer=name.encode()) for name in ("amd64", "arm64")}
        self.parts = tuple(one.digest for one in found.values())
        self.old = self.registry.index("app", "v1", **found).digest
        self.latest = self.registry.image("app", "latest", layer=b"latest").digest
        self.new = self.registry.image("app", layer=b"new").digest
        self.tags["also"] = self.old
        if trashed:
            self.store.tags = {"latest": self.latest, trash_tag(self.old): self.old}

    @property
    def store(self) -> Store:
        return self.registry.store["app"]

    @property
    def tags(self) -> dict[str, str]:
        return self.store.tags

    @property
    def whole(self) -> bool:
        """Whether the index is there with all its parts."""
        return {self.old, *self.parts} <= set(self.store.manifests)

    def delete(self) -> None:
        images.delete(self.at, self._image, {"v1", "also", "latest"})

    def restore(self) -> None:
        images.restore(self.at, self._image)

    def purge(self) -> None:
        images.purge(self.at, self._image, set(self.store.manifests) - {self.old, *self.parts})

    @property
    def _image(self) -> Trashed:
        return Trashed("app", self.old, {"v1": 5, "also": 5}, self.parts, 5, "", "", "", 10)

    def each(self, work: Callable[[], None], tag: str, digest: str) -> Iterator[Request]:
        """Each request of *work* just before which somebody pushes *digest* as *tag*, and is told that it is done.

        Yields when *work* has ended.
        """
        for number in itertools.count():
            self.begin(trashed=work == self.purge)
            content, pushed = self.store.manifests[digest], []

            def push(content: bytes = content, pushed: list[bool] = pushed) -> None:
                # Registries take an index only if they have what it lists.
                if all(one["digest"] in self.store.manifests for one in json.loads(content).get("manifests", ())):
                    self.store.manifests[digest] = content
                    self.tags[tag] = digest
                    pushed.append(True)

            asked = self._run(work, number, push)
            if number >= len(asked):
                return
            if pushed:
                yield asked[number]

    def _run(self, work: Callable[[], None], number: int, push: Callable[[], None]) -> list[Request]:
        asked: list[Request] = []
        send = self.at.send

        def sends(method: str, target: str, **more: Any) -> Any:
            if len(asked) == number:
                push()
            asked.append((method, target.rpartition("/")[2]))
            return send(method, target, **more)

        with pytest.MonkeyPatch.context() as patch, suppress(Skipped, RegistryError):
            patch.setattr(self.at, "send", sends)
            work()
        return asked


@pytest.fixture(params=[True, False], ids=["zot", "distribution"])
def app(request: pytest.FixtureRequest, pair: pki.Pair) -> Iterator[App]:
    """As zot has it, or Distribution 2.8: whether a tag can be deleted alone, and whether there is a referrers API."""
    registry = Repositories(untags=request.param, referrers=request.param)
    with serving(registry, pair, ScopedHandler), connector(registry)() as at:
        yield App(registry, at)


@pytest.mark.parametrize("tag", ["v1", "also"])
def test_a_tag_that_is_pushed_while_its_image_goes_to_the_trash_is_lost_by_the_request_that_deletes_it_only(
    app: App, tag: str
) -> None:
    missing = []
    for request in app.each(app.delete, tag, app.new):
        assert app.whole
        assert app.new in app.store.manifests, "it can be pulled by its digest"
        assert TOMBSTONE_DIGEST not in app.tags.values()
        if app.tags.get(tag) != app.new:
            missing.append(request)
    assert missing == [("DELETE" if app.registry.untags else "PUT", tag)]


def test_a_tag_that_is_pushed_while_the_registry_has_no_answer_is_not_lost(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the registry goes on when it is back: pushes do so at once, the executor after a pause."""
    takes = "DELETE" if app.registry.untags else "PUT"
    pushed: list[str] = []

    def refusal(method: str, path: str) -> int | None:
        if pushed or (method, path) != (takes, "/v2/app/manifests/v1"):
            return None
        app.tags["v1"] = app.new
        pushed.append(path)
        return 503

    monkeypatch.setattr(app.registry, "refusal", refusal)
    app.delete()
    assert (len(pushed), app.tags["v1"], app.tags.get("also")) == (1, app.new, None)
    app.begin(trashed=True)
    takes = "PUT"
    pushed.clear()
    app.restore()
    assert (len(pushed), app.tags["v1"], app.tags["also"]) == (1, app.new, app.old)


def test_a_new_tag_for_an_image_that_goes_to_the_trash_stays(app: App) -> None:
    for _ in app.each(app.delete, "mine", app.old):
        assert app.tags["mine"] == app.old
        assert app.whole


def lost(app: App, tag: str, digest: str, *, whole: bool) -> list[Request]:
    """Before which requests of the deletion for good *digest* is pushed as *tag* and is not there in the end."""
    return [
        request
        for request in app.each(app.purge, tag, digest)
        if not (app.tags.get(tag) == digest in app.store.manifests and (app.whole or not whole))
    ]


def test_an_image_that_is_pushed_again_while_it_goes_for_good_is_lost_by_the_request_that_deletes_it_only(
    app: App,
) -> None:
    # zot deletes no part of an index that is there.
    deletions = [app.old] if app.registry.untags else [app.old, app.parts[0]]
    assert lost(app, "mine", app.old, whole=True) == [("DELETE", digest) for digest in deletions]


def test_a_tag_that_is_moved_to_an_image_that_goes_for_good_is_put_back(app: App) -> None:
    deletions = [] if app.registry.untags else [app.parts[0]]
    assert lost(app, "latest", app.old, whole=True) == [("DELETE", digest) for digest in deletions]


def test_a_part_that_is_tagged_meanwhile_is_lost_by_the_request_that_deletes_it_only(app: App) -> None:
    part = app.parts[1]
    last = lost(app, "mine", part, whole=False)
    assert last[-1] == ("DELETE", part)
    assert len(last) == 2, "it is looked whether the index has come back in between"


def test_what_an_index_needs_that_is_pushed_meanwhile_stays_down_to_the_last_part(app: App) -> None:
    """The image that goes is an index of an index, and what is pushed needs the inner one."""
    stayed = 0
    for number in itertools.count():
        app.begin(trashed=True)
        inner = oci.Descriptor(media_type=oci.INDEX, digest=app.old, size=len(app.store.manifests[app.old]))
        outer = app.registry.index("app", "", inner=inner).digest
        mine = app.registry.index("app", "", mine=inner).digest
        content = app.store.manifests.pop(mine)
        app.store.tags = {"latest": app.latest, trash_tag(outer): outer}
        image = Trashed("app", outer, {}, (app.old, *app.parts), 5, "", "", "", 10)
        known = {app.latest, app.new}

        def push(content: bytes = content, mine: str = mine) -> None:
            if app.old in app.store.manifests:
                app.store.manifests[mine] = content
                app.tags["mine"] = mine

        asked = app._run(partial(images.purge, app.at, image, known), number, push)
        if number >= len(asked):
            break
        if "mine" in app.tags:
            stayed += app.whole
            # It is looked whether the outer one has come back in between.
            assert app.whole or asked[number] in {("HEAD", outer), ("DELETE", app.old)}
    assert stayed > 10


@pytest.mark.parametrize("tag", ["latest", "mine"])
def test_a_list_of_tags_that_is_not_there_for_a_moment_costs_no_tag(app: App, tag: str) -> None:
    """zot makes a 404 of a storage error. *mine* is a tag of the image that goes, which nobody knew of."""
    for number in itertools.count():
        app.begin(trashed=True)
        app.tags.setdefault(tag, app.old)
        before, lists = app.tags[tag], list[int]()
        app.registry.refuse = {("GET", "/tags/list"): lists}
        asked = app._run(app.purge, number, partial(lists.append, 404))
        assert app.tags[tag] == before in app.store.manifests
        if number >= len(asked):
            break


def test_without_a_push_all_of_it_goes(app: App) -> None:
    app.begin(trashed=True)
    app.purge()
    assert set(app.store.manifests) == {app.latest, app.new}
    assert app.tags == {"latest": app.latest}


@pytest.mark.parametrize("left", [True, False], ids=["with its parts", "alone"])
def test_a_tag_that_is_left_of_a_deletion_goes_with_distribution_and_stays_with_zot(app: App, left: bool) -> None:
    """Distribution deletes the manifest first, and may be killed before it has deleted its tags."""
    app.begin(trashed=True)
    for digest in (app.old, *(() if left else app.parts)):
        del app.store.manifests[digest]
    with pytest.raises(Skipped, match="it is still there") if app.registry.untags else nullcontext():
        app.purge() if left else images.forget(app.at, app._image)
    assert set(app.store.manifests) == {app.latest, app.new}
    assert (trash_tag(app.old) in app.tags) == app.registry.untags


@pytest.mark.parametrize("work", ["delete", "restore"])
def test_what_a_broken_run_has_left_without_a_manifest_goes_with_distribution(app: App, work: str) -> None:
    """The tag was given to the tombstone, which is gone. With zot it may mean an image that is out of reach."""
    trash = trash_tag(app.old)
    left = dict.fromkeys(["v1", "also"] if work == "delete" else [trash], TOMBSTONE_DIGEST)
    app.store.tags |= {trash: app.old, **left}
    if work == "delete":
        app.delete()
    else:
        images.restore(app.at, app._image)
    stay = {trash: app.old} if work == "delete" else {"v1": app.old, "also": app.old}
    assert app.tags == {"latest": app.latest, **stay, **(left if app.registry.untags else {})}
    assert app.whole


def test_an_image_with_many_signatures_takes_no_longer_for_each_of_them(app: App) -> None:
    asked: list[int] = []
    for count in (10, 20, 30):
        app.begin(trashed=True)
        subject = {"mediaType": oci.INDEX, "digest": app.old, "size": len(app.store.manifests[app.old])}
        signed = [app.registry.image("app", layer=b"%d" % one, subject=subject).digest for one in range(count)]
        image = Trashed("app", app.old, {}, (*signed, *app.parts), 5, "", "", "", 10)
        known = {app.latest, app.new}
        asked.append(len(app._run(partial(images.purge, app.at, image, known), -1, lambda: None)))
        assert set(app.store.manifests) == known
    assert asked[2] - asked[1] == asked[1] - asked[0]


def test_a_tag_that_somebody_deletes_meanwhile_does_not_come_back(app: App) -> None:
    """But between the looks before and after a deletion, where it may as well have been moved to the image."""
    back, asked = 0, []
    for number in itertools.count():
        app.begin(trashed=True)
        asked = app._run(app.purge, number, lambda: app.tags.pop("latest", None) and None)
        if number >= len(asked):
            break
        back += "latest" in app.tags
    deletions = sum(method == "DELETE" for method, _ in asked)
    assert deletions >= 3
    assert back <= 3 * deletions < len(asked) - back, (back, deletions, asked)
