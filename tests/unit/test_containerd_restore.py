"""The way back where something else happened to containerd's files since, and what hangs on a file beside its bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry.containerd import backup, notices, problems, restore_problems
from kubeadm_registry.containerd.changes import NEW_CONFIG
from kubeadm_registry.containerd.edit import Uneditable, unset_key
from kubeadm_registry.containerd.record import DIRECTORY
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.formats import NewerFormat
from tests.unit.containerd_host import Rooted, host
from tests.unit.test_containerd_steps import CERTS, CONFIG, GOLDEN, SETTINGS, init, reset, without_ours

pytestmark = pytest.mark.slow

ORIGINAL = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "own/pause:1"\n'


@pytest.fixture
def rooted(tmp_path: Path) -> Rooted:
    return Rooted(tmp_path)


def label(path: Path) -> None:
    """Give *path* an extended attribute and an ACL, or skip the test where the file system has none."""
    # Version 2; entries of tag, permissions and id: owner rw, user 1234 r, group r, mask r, others none.
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    try:
        os.setxattr(path, "user.mine", b"1")
        os.setxattr(
            path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
        )
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip("the file system has no extended attributes")
        raise


def labels(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_extended_attributes_and_acls_stay(rooted: Rooted) -> None:
    path = rooted.put(CONFIG, ORIGINAL, 0o640)
    label(path)
    before = labels(path)
    assert set(before) >= {"user.mine", "system.posix_acl_access"}
    init(rooted)
    assert "config_path" in path.read_text()
    assert labels(path) == before
    reset(rooted)
    assert (path.read_text(), labels(path)) == (ORIGINAL, before)


def test_attributes_of_an_edited_hosts_file_stay(rooted: Rooted) -> None:
    """It may hold a login of the user's."""
    init(rooted)
    path = rooted.path(f"{CERTS}/docker.io/hosts.toml")
    path.write_text(path.read_text() + '[host."https://mine.lan".header]\n  Authorization = "Basic eA=="\n')
    path.chmod(0o600)
    label(path)
    before = labels(path)
    mode = path.stat().st_mode
    reset(rooted)
    assert path.read_text().startswith('[host."https://mine.lan"')
    assert (labels(path), path.stat().st_mode) == (before, mode)


def test_a_mode_that_the_user_set_since_stays_with_the_edit(rooted: Rooted) -> None:
    path = rooted.put(CONFIG, ORIGINAL, 0o644)
    init(rooted)
    path.write_text(path.read_text() + "# mine\n")
    path.chmod(0o600)
    reset(rooted)
    assert path.read_text() == ORIGINAL + "# mine\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_that_took_the_place_of_the_file_stays_one(rooted: Rooted) -> None:
    path = rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    target = rooted.put("/srv/containerd.toml", path.read_text())
    path.unlink()
    path.symlink_to(target)
    reset(rooted)
    assert path.is_symlink()
    assert target.read_text() == ORIGINAL
    assert not reset(rooted)


def test_a_link_to_nowhere_in_place_of_the_file_does_not_hold_reset_up(rooted: Rooted) -> None:
    path = rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    path.unlink()
    path.symlink_to("nowhere")
    reset(rooted)
    assert path.is_symlink()
    assert not rooted.path(f"{CERTS}/docker.io").exists()


def test_a_hosts_file_that_is_a_link_to_nowhere_stays_and_is_reported(rooted: Rooted) -> None:
    link = rooted.path(f"{CERTS}/docker.io/hosts.toml")
    link.parent.mkdir(parents=True)
    link.symlink_to("/srv/not-mounted/hosts.toml")
    before = rooted.tree()
    init(rooted)
    assert link.is_symlink()
    assert "a dangling link" in next(notices(host(rooted), SETTINGS))
    assert not init(rooted)
    reset(rooted)
    assert link.is_symlink()
    assert without_ours(rooted.tree()) == before


@pytest.mark.parametrize("lines", [1, 2])
def test_a_hosts_file_without_its_first_lines_is_still_ours(rooted: Rooted, lines: int) -> None:
    """It names our CA, so nothing could be pulled by it any more."""
    before = rooted.tree()
    init(rooted)
    path = rooted.path(f"{CERTS}/docker.io/hosts.toml")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[lines:]))
    assert not init(rooted), "it stays as it was edited"
    reset(rooted)
    assert without_ours(rooted.tree()) == before


def test_directories_above_those_of_hosts_files_go_again(rooted: Rooted) -> None:
    rooted.put(CONFIG, 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/a/b/c"\n')
    before = rooted.tree()
    init(rooted)
    assert rooted.path("/etc/a/b/c/docker.io/hosts.toml").exists()
    reset(rooted)
    assert without_ours(rooted.tree()) == before


@pytest.mark.parametrize(
    "rest", [NEW_CONFIG, NEW_CONFIG.rstrip("\n"), f"\n{NEW_CONFIG}\n", NEW_CONFIG.replace("\n", "\r\n")]
)
def test_a_file_with_nothing_but_our_comment_goes(rooted: Rooted, rest: str) -> None:
    before = rooted.tree()
    init(rooted)
    rooted.path(CONFIG).write_text(rest, newline="")
    reset(rooted)
    assert without_ours(rooted.tree()) == before


def test_a_file_that_is_no_toml_by_now_is_to_be_fixed_and_no_key_of_it_removed(rooted: Rooted) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    rooted.put(CONFIG, rooted.path(CONFIG).read_text() + "mine = [\n")
    (problem,) = restore_problems(host(rooted))
    assert "config.toml: line 7: " in problem
    assert ": fix the TOML" in problem
    assert "remove" not in problem


def test_keys_that_a_conversion_moved_are_taken_out_where_they_are(rooted: Rooted) -> None:
    rooted.put(
        CONFIG, 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "registry.k8s.io/pause:3.8"\n'
    )
    init(rooted)
    rooted.says_version("2.4.2")
    converted = """\
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{}'
{}"""
    path = "[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/etc/containerd/certs.d'\n"
    rooted.put(CONFIG, converted.format("registry.k8s.io/pause:3.10.2", path))
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == converted.format("registry.k8s.io/pause:3.8", "")


@pytest.mark.parametrize("later", [None, "disabled_plugins = []\n"], ids=["removed", "another package's"])
def test_a_configuration_that_was_replaced_between_two_runs(rooted: Rooted, later: str | None) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    rooted.path(CONFIG).unlink()
    if later is not None:
        rooted.put(CONFIG, later)
    assert init(rooted)
    reset(rooted)
    assert (rooted.path(CONFIG).read_text() if rooted.path(CONFIG).exists() else None) == later


def test_a_header_of_the_file_that_took_the_place_of_another_stays(rooted: Rooted) -> None:
    rooted.put(CONFIG, "version = 2\n")
    init(rooted)
    later = (GOLDEN / "debian-1.7" / "original.toml").read_text()
    rooted.put(CONFIG, later)
    assert init(rooted)
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == later


def test_a_run_that_dies_after_a_file_was_put_back_owes_a_restart(rooted: Rooted) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    restarts = rooted.restarts
    rooted.breaks_after = ("write", CONFIG)
    with pytest.raises(ConnectionFailed):
        reset(rooted)
    rooted.breaks_after = ()
    assert rooted.path(CONFIG).read_text() == ORIGINAL
    reset(rooted)
    assert rooted.restarts == restarts + 1


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_run_that_dies_anywhere_is_made_up_and_taken_back(tmp_path: Path, first: int) -> None:
    """After each command that changes something, in init and then in reset; a third of them in each test."""
    few = replace(SETTINGS, vip_addresses=("10.0.0.10",), vip_name="", mirrors=("docker.io",))
    point, whole = first, False
    while not whole:
        rooted = Rooted(tmp_path / str(point))
        rooted.put(CONFIG, ORIGINAL)
        before = rooted.tree()
        rooted.acts_left = point
        applied = False
        with suppress(ConnectionFailed):
            init(rooted, few)
            applied = True
            reset(rooted)
            whole = True
        rooted.acts_left = None
        if not applied:
            init(rooted, few)
            assert "config_path" in rooted.path(CONFIG).read_text(), point
        reset(rooted)
        assert without_ours(rooted.tree()) == before, point
        point += 3
    assert point > 25


def test_a_key_that_is_a_table_by_dots_is_not_taken_out_in_part() -> None:
    with pytest.raises(Uneditable, match="layout of the file"):
        unset_key('plugins."x".registry.a = 1\n', ("plugins", "x"), "registry")


def test_leftovers_of_killed_runs_do_not_keep_directories(rooted: Rooted) -> None:
    rooted.path("/etc/containerd").rmdir()
    before = rooted.tree()
    init(rooted)
    rooted.put(f"{CERTS}/docker.io/.hosts.toml.aB3dE5gH7j.kubeadm-registry", "[hos")
    rooted.put(f"{CERTS}/.new.aB3dE5gH7j-kubeadm-registry-ca.crt", "---")
    rooted.put("/etc/containerd/.config.toml.aB3dE5gH7j.kubeadm-registry", "vers")
    reset(rooted)
    assert without_ours(rooted.tree()) == before


# ---- the records and the copies -------------------------------------------------------------------------------------


def copy(rooted: Rooted) -> Path:
    return rooted.path(backup.copy_of(CONFIG))


def test_without_the_record_reset_says_what_would_stay(rooted: Rooted) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    shutil.rmtree(rooted.path(DIRECTORY))
    (found,) = restore_problems(host(rooted))
    assert f'config_path = "{CERTS}" in {CONFIG}' in found
    rooted.put(CONFIG, ORIGINAL)
    assert not list(restore_problems(host(rooted))), "the remedy is one"
    reset(rooted)
    assert not rooted.path(CERTS).joinpath("docker.io/hosts.toml").exists()


@pytest.mark.parametrize("name", ["originals.json", "written.json"])
def test_half_of_the_record_is_none(rooted: Rooted, name: str) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    rooted.path(f"{DIRECTORY}/{name}").unlink()
    assert "would stay" in next(restore_problems(host(rooted)))


def test_a_healthy_host_can_be_restored(rooted: Rooted) -> None:
    assert not list(restore_problems(host(rooted))), "nothing of ours is there"
    rooted.put(CONFIG, 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/mine"\n')
    init(rooted)
    assert not list(restore_problems(host(rooted))), "config_path is the user's own"


def damage(rooted: Rooted, name: str, change: Callable[[Any], Any]) -> None:
    path = rooted.path(f"{DIRECTORY}/{name}")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


MISSHAPEN: list[tuple[str, Callable[[Any], Any], str]] = [
    ("originals.json", lambda _: [], "not a JSON object"),
    ("originals.json", lambda all_: all_ | {"files": 1}, "files: "),
    ("originals.json", lambda all_: all_ | {"files": {CONFIG: 1}}, f"files.{CONFIG}: "),
    ("originals.json", lambda all_: all_ | {"files": {CONFIG: {"mode": "9", "owner": "root:root"}}}, ".mode: "),
    ("originals.json", lambda all_: all_ | {"files": {"relative": None}}, "files.relative"),
    ("originals.json", lambda all_: all_ | {"directories": 3}, "directories: "),
    ("originals.json", lambda all_: all_ | {"format": 3}, "format"),
    ("written.json", lambda _: None, "not a JSON object"),
    ("written.json", lambda all_: all_ | {"files": {CONFIG: {}}}, f"files.{CONFIG}.sha256: is missing"),
    ("written.json", lambda all_: all_ | {"files": {CONFIG: {"sha256": "x" * 64, "edits": 1}}}, "sha256: "),
    ("written.json", lambda all_: all_ | {"hostsDirectories": {}}, "hostsDirectories: "),
]


@pytest.mark.parametrize(("name", "change", "says"), MISSHAPEN)
def test_a_misshapen_record_is_named_before_anything_is_changed(
    rooted: Rooted, name: str, change: Callable[[Any], Any], says: str
) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    damage(rooted, name, change)
    before = rooted.tree()
    for found in (next(restore_problems(host(rooted))), next(problems(host(rooted)))):
        assert f"{DIRECTORY}/{name} is damaged: " in found
        assert says in found
        assert f"restore them manually, then remove {DIRECTORY}" in found
    with pytest.raises(Error) as caught:
        reset(rooted)
    assert caught.value.code == "BackupDamaged"
    assert rooted.tree() == before


def test_a_record_of_a_newer_release_is_left_to_it(rooted: Rooted) -> None:
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    damage(rooted, "written.json", lambda all_: all_ | {"format": {"version": 9, "minReader": 9, "minWriter": 9}})
    assert "use a newer kubeadm-registry" in next(restore_problems(host(rooted)))
    assert "use a newer kubeadm-registry" in next(problems(host(rooted)))
    with pytest.raises(NewerFormat):
        reset(rooted)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("version = 2 # altered\n")])
def test_a_copy_that_is_gone_or_altered_is_not_restored(rooted: Rooted, spoil: Callable[[Path], Any]) -> None:
    """Where the file without our keys is the original by its digest, that is taken."""
    rooted.put(CONFIG, ORIGINAL)
    init(rooted)
    spoil(copy(rooted))
    assert not list(restore_problems(host(rooted)))
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == ORIGINAL


def test_an_altered_copy_that_nothing_makes_up_for_is_an_error(rooted: Rooted) -> None:
    # Where the last line has no end, the file without our keys has one.
    rooted.put(CONFIG, ORIGINAL.rstrip("\n"))
    init(rooted)
    copy(rooted).write_text("version = 2 # altered\n")
    before = rooted.tree()
    (found,) = restore_problems(host(rooted))
    assert f"the copy of {CONFIG} in {DIRECTORY} is modified since it was made" in found
    assert f"restore the original of {CONFIG} manually, then remove {DIRECTORY}" in found
    with pytest.raises(Error) as caught:
        reset(rooted)
    assert caught.value.code == "BackupDamaged"
    assert rooted.tree() == before


def test_what_0_1_kept_without_digests_is_restored(rooted: Rooted) -> None:
    rooted.put(CONFIG, ORIGINAL.rstrip("\n"))
    init(rooted)

    def as_0_1(record: Any) -> Any:
        del record["format"]
        for entry in record["files"].values():
            del entry["sha256"]
        return record

    damage(rooted, "originals.json", as_0_1)
    assert not list(restore_problems(host(rooted)))
    assert init(rooted, replace(SETTINGS, sandbox_image=None)) == []
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == ORIGINAL.rstrip("\n")


def test_what_a_newer_release_noted_stays_in_the_record(rooted: Rooted) -> None:
    rooted.put(CONFIG, (GOLDEN / "default-1.7" / "original.toml").read_bytes())
    init(rooted, replace(SETTINGS, sandbox_image="registry.k8s.io/pause:3.10"))

    def noted(record: Any) -> Any:
        record["files"][CONFIG]["edits"][-1]["why"] = record["files"][CONFIG]["by"] = record["more"] = "newer"
        return record

    damage(rooted, "written.json", noted)
    assert init(rooted)
    record = json.loads(rooted.path(f"{DIRECTORY}/written.json").read_text())
    assert record["more"] == record["files"][CONFIG]["by"] == "newer"
    assert [edit.get("why") for edit in record["files"][CONFIG]["edits"]] == [None, "newer"]
