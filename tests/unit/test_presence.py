"""On which nodes images are complete: by files of blocks, asked of a storage and looked for on disks."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kubeadm_registry import config
from kubeadm_registry.access import presence
from kubeadm_registry.access.presence import Presence, verdict
from kubeadm_registry.agent import blocks as asker
from kubeadm_registry.components import blocks, garage
from kubeadm_registry.components.services import backend, frontend
from kubeadm_registry.errors import Error
from kubeadm_registry.images.seed import Item
from kubeadm_registry.oci import descriptors as oci
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fakes import FakeTransport

A, B, C = (one * 64 for one in "abc")


def answer(request: Mapping[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the program on a node says: its lines, or its complaint."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    status = asker.main()
    said = capsys.readouterr()
    return said.out.splitlines() if status == 0 else said.err


# ---- the program on the nodes ----------------------------------------------------------------------------------------


def version(**changes: object) -> dict[str, object]:
    whole = {"uploading": False, "deleteMarker": False, "inline": False, "size": 5, "blocks": []}
    return {**whole, **changes}


OBJECTS = {
    "one": [version(size=12, blocks=[{"hash": A, "size": 5, "offset": 0}, {"hash": B, "size": 7, "offset": 5}])],
    "inline": [version(inline=True)],
    "newer": [version(blocks=[{"hash": A, "size": 5}]), version(size=7, blocks=[{"hash": B, "size": 7}])],
    "empty": [version(size=0)],
    "listless": [version(size=7, uuid="77")],
    "partly": [version(size=12, uuid="88", blocks=[{"hash": A, "size": 5}])],
    "uploading": [version(size=None, uploading=True, blocks=[{"hash": A, "size": 5}])],
    "again": [version(blocks=[{"hash": A, "size": 5}]), version(size=None, uploading=True)],
    "deleted": [version(size=None, deleteMarker=True)],
}


class Admin(BaseHTTPRequestHandler):
    """Garage's admin API, as far as it is asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path, words = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        body: object = {"message": "no"}
        status = 404
        if self.headers["Authorization"] != "Bearer secret":
            status = 403
        elif path == "/v2/GetBucketInfo" and words == {"globalAlias": ["registry-zot"]}:
            status, body = 200, {"id": "b1"}
        elif path == "/v2/InspectObject" and words["key"][0] in OBJECTS:
            assert words["bucketId"] == ["b1"]
            status, body = 200, {"versions": OBJECTS[words["key"][0]]}
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def admin() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_an_object_is_told_by_its_blocks(
    admin: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (token := tmp_path / "token").write_text("secret\n")
    request = {"host": "127.0.0.1", "port": admin, "token": str(token), "bucket": "registry-zot"}
    keys = ["one", "inline", "missing", "newer", "uploading", "again", "deleted"]
    *told, end = answer({**request, "keys": keys}, monkeypatch, capsys)
    assert end == "end"
    assert [json.loads(line) for line in told] == [[[A, 5], [B, 7]], [], None, [[B, 7]], None, [[A, 5]], None]
    lost = ["empty", "listless", "partly"]
    *told, end = answer({**request, "keys": lost}, monkeypatch, capsys)
    assert [json.loads(line) for line in told] == [[], [["unlisted-77", 7]], [[A, 5], ["unlisted-88", 7]]]
    gone = {"data": str(tmp_path), "blocks": {"unlisted-77": 7}}
    assert answer(gone, monkeypatch, capsys) == ["unlisted-77", "end"]
    token.write_text("wrong")
    assert "status 403" in answer({**request, "keys": keys}, monkeypatch, capsys)
    token.write_text("secret")
    no_bucket = answer({**request, "bucket": "other", "keys": keys}, monkeypatch, capsys)
    assert no_bucket == "cannot ask the storage: there is no bucket other\n"


def test_a_block_is_there_if_its_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(block: str, size: int, ending: str = "") -> None:
        (folder := tmp_path / block[:2] / block[2:4]).mkdir(parents=True)
        (folder / (block + ending)).write_bytes(b"x" * size)

    put(A, 5)
    put(B, 6)
    put(C, 3, ".zst")
    wanted = {A: 5, B: 7, C: 9, "d" * 64: 1}
    assert answer({"data": str(tmp_path), "blocks": wanted}, monkeypatch, capsys) == [B, "d" * 64, "end"]


@pytest.mark.parametrize("fault", [errno.EIO, errno.EACCES])
def test_a_block_that_a_broken_disk_does_not_show_is_not_lost(
    fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What no node has is deleted, and this may come back with a check of the file system."""

    def stat(path: Path, **_: object) -> None:
        raise OSError(fault, os.strerror(fault), str(path))

    monkeypatch.setattr(Path, "stat", stat)
    told = answer({"data": str(tmp_path), "blocks": {A: 5}}, monkeypatch, capsys)
    assert told == f"cannot look for blocks: [Errno {fault}] {os.strerror(fault)}: '{tmp_path}/aa/aa/{A}'\n"


# ---- asked through SSH -----------------------------------------------------------------------------------------------


def test_an_answer_that_is_cut_off_is_none() -> None:
    fake = FakeTransport("cp-1")
    fake.answer("sh", with_=f"{A}\n")
    with pytest.raises(Error, match="the answer is not complete") as caught:
        blocks.lacking(fake.host(), "/data", {A: 1})
    assert (caught.value.code, caught.value.host) == ("StorageUnreadable", "cp-1")


def test_a_node_is_asked_about_many_blocks_and_objects_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "AT_ONCE", 3)
    fake, told = FakeTransport("cp-1"), []

    def answers(_: tuple[str, ...], stdin: bytes) -> str:
        request = json.loads(stdin)
        if "keys" in request:
            told.append(len(request["keys"]))
            return "".join(f'[["{key}", 1]]\n' for key in request["keys"]) + "end\n"
        told.append(len(request["blocks"]))
        return "".join(f"{block}\n" for block, size in request["blocks"].items() if size % 2) + "end\n"

    fake.answer("sh", with_=answers)
    cluster: Any = SimpleNamespace(spec=config.parse(config.SMALLEST, "x").spec)
    assert blocks.lacking(fake.host(), "/data", {str(size): size for size in range(8)}) == {"1", "3", "5", "7"}
    assert garage.blocks(cluster, fake.host(), list("abcd")) == [{key: 1} for key in "abcd"]
    assert told == [3, 3, 2, 3, 1]


def test_the_token_of_the_storage_stays_on_the_node() -> None:
    fake = FakeTransport("cp-1")
    fake.answer("sh", with_=f'[["{A}", 5]]\nnull\nend\n')
    cluster: Any = SimpleNamespace(spec=config.parse(config.SMALLEST, "x").spec)
    assert garage.blocks(cluster, fake.host(), ["x", "y"]) == [{A: 5}, None]
    [asked] = fake.log
    assert json.loads(asked.stdin) == {
        "host": "127.0.0.1", "port": 3903, "token": garage.ADMIN_TOKEN, "bucket": "registry-zot", "keys": ["x", "y"],
    }  # fmt: skip


# ---- images ----------------------------------------------------------------------------------------------------------


def descriptor(number: int) -> oci.Descriptor:
    return oci.Descriptor(media_type=oci.MANIFEST, digest=f"sha256:{number:064x}", size=1)


def item(name: str, *blobs: int) -> Item:
    root, *others = map(descriptor, blobs)
    return Item(name, f"team/{name}", "v1", root, (root,), tuple(others), frozenset())


@pytest.fixture
def stored(three: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the storage has: ``objects`` by number of the blob, and what each node ``lacks``."""
    said: dict[str, Any] = {"objects": {1: {}, 2: {A: 10, B: 5}, 3: {C: 7}}, "lacks": {}, "asked": []}
    spec = three.config.spec

    def tell(_: Any, host: Any, keys: Any) -> list[Any]:
        said["asked"].append((host.name, list(keys)))
        if host.name in said.get("dark", ()):
            raise Error("no answer", host=host.name, code="StorageUnreadable")
        byname = {
            frontend(spec).key(f"team/{name}", descriptor(number).digest): found
            for number, found in said["objects"].items()
            for name in ("app", "db")
        }
        return [byname[key] for key in keys]

    def lacks(_: Any, host: Any, wanted: Any) -> frozenset[str]:
        if host.name in said.get("dark", ()):
            raise Error("no answer", host=host.name, code="StorageUnreadable")
        return frozenset(wanted) & said["lacks"].get(host.name, frozenset())

    monkeypatch.setattr(backend(spec), "blocks", tell)
    monkeypatch.setattr(backend(spec), "lacking", lacks)
    return said


def test_an_image_is_complete_where_all_its_blocks_are(three: FakeCluster, stored: dict[str, Any]) -> None:
    stored["lacks"] = {"cp-2": frozenset({B, C}), "cp-3": frozenset({C})}
    app, db = item("app", 1, 2), item("db", 1, 3)
    found, silent = presence.look(three.cluster, [app, db])
    assert silent == {}
    assert [one.to_dict() for one in found] == [
        {"name": "app", "size": 15, "complete": ["cp-1", "cp-3"], "missing": {"cp-2": 5}, "copies": 2, "lost": False},
        {"name": "db", "size": 7, "complete": ["cp-1"], "missing": {"cp-2": 7, "cp-3": 7}, "copies": 1, "lost": False},
    ]
    [(_, keys)] = stored["asked"]
    assert len(keys) == len(set(keys)), "each object is asked for once"
    said = verdict(found, silent, 3)
    assert (said["status"], said["reason"]) == ("False", "CopiesMissing")
    assert said["message"] == "fewer than 3 nodes have all of app, db"


def test_an_object_with_a_block_that_no_node_has_is_broken(three: FakeCluster, stored: dict[str, Any]) -> None:
    stored["lacks"] = {"cp-1": frozenset({B, C}), "cp-2": frozenset({B, C}), "cp-3": frozenset({B})}
    app, db = item("app", 1, 2), item("db", 1, 3)
    keys = [*presence.keys_of(three.cluster, app), *presence.keys_of(three.cluster, db)]
    assert presence.broken(three.cluster, keys) == {frontend(three.config.spec).key("team/app", descriptor(2).digest)}
    assert [one.copies for one in presence.look(three.cluster, [app, db])[0]] == [0, 1]


def test_what_the_storage_does_not_know_is_lost(three: FakeCluster, stored: dict[str, Any]) -> None:
    stored["objects"][3] = None
    found, silent = presence.look(three.cluster, [item("app", 1, 2), item("db", 1, 3)])
    assert [one.lost for one in found] == [False, True]
    assert found[1].complete == ()
    assert verdict(found, silent, 3)["reason"] == "ImagesLost"


def test_a_node_that_cannot_be_asked_is_named_and_another_answers_for_the_storage(
    three: FakeCluster, stored: dict[str, Any]
) -> None:
    stored["dark"] = {"cp-1"}
    found, silent = presence.look(three.cluster, [item("app", 1, 2)])
    assert silent == {"cp-1": "no answer"}
    assert found[0].complete == ("cp-2", "cp-3")
    assert verdict(found, silent, 3)["status"] == "Unknown"
    stored["dark"] = {"cp-1", "cp-2", "cp-3"}
    with pytest.raises(Error) as caught:
        presence.look(three.cluster, [item("app", 1, 2)])
    assert caught.value.code == "StorageUnreadable"


def test_all_complete_is_said_so() -> None:
    whole = Presence("app", 5, dict.fromkeys(("cp-1", "cp-2", "cp-3"), 0), 3)
    assert verdict([whole], {}, 3) == {
        "type": "ImagesComplete", "status": "True", "reason": "Complete",
        "message": "1 image, each block on 3 nodes",
    }  # fmt: skip
    five = Presence("app", 5, {f"cp-{number}": 0 if number < 3 else 2 for number in range(5)}, 3)
    assert verdict([five], {}, 3)["status"] == "True", "of five nodes each has a part"


def test_the_agent_counts_blocks_of_the_size_that_garage_is_told(root: Path) -> None:
    assert 'block_size = "1MiB"' in (root / "tests/golden/five-nodes/zeus.txt").read_text()
    assert garage.BLOCK == 1 << 20
