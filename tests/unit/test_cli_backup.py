"""``backup`` as people type it: what is in it, what is refused before anything is asked, what others may see."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from kubeadm_registry import config, members, pki, secrets
from kubeadm_registry.backup import Image, Passphrase, Pin
from kubeadm_registry.backup.file import PASSPHRASE
from kubeadm_registry.cli import backup as cli_backup
from kubeadm_registry.cli import terminal
from kubeadm_registry.engine.workflow import run as run_workflow
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images import inventory
from kubeadm_registry.images.names import Place
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.members import Members
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.retention import standing
from kubeadm_registry.upkeep import store
from tests.unit.backup_site import FIXED, NAMES, PAUSE, Site, contents_of, error, lines
from tests.unit.fake_cluster import ELSEWHERE
from tests.unit.fake_registry import connector
from tests.unit.test_bundle_signing import public
from tests.unit.test_workflow import Recorder

pytest_plugins = ["tests.unit.backup_site"]


# ---- backup ---------------------------------------------------------------------------------------------------------


def test_a_backup_has_all_that_the_nodes_keep_to_themselves(site: Site) -> None:
    path = site.folder / "backup"
    result = site("backup", "-o", path, "--recipients-file", public(site.key))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith("kB, encrypted for 1 public key; 3 nodes, 2 images")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = contents_of(site, path)
    assert found.secrets == FIXED.found
    assert secrets.render(found.secrets) == site.three.servers["cp-2"].content(secrets.PATH)
    assert found.cluster_file == f"# of the site\n{config.SMALLEST}"
    assert [(one.name, one.address, one.identity) for one in found.members] == [
        (name, f"10.0.0.1{number}", FIXED.node_id(name)) for number, name in enumerate(NAMES, 1)
    ]
    assert {one.name: one.digest for one in found.programs} == {
        name: one.digest for name, one in site.three.programs.items()
    }
    assert found.images == tuple(
        Image(name, tag, site.registry.store[name].tags[tag]) for name, tag in ((PAUSE, "3.10"), ("team/app", "v1"))
    )


def test_a_cluster_file_that_comes_through_a_pipe_is_in_it(site: Site) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write(f"# of a pipe\n{config.SMALLEST}")
    path = site.back_up("-f", f"/dev/fd/{read}")
    os.close(read)
    assert contents_of(site, path).cluster_file == f"# of a pipe\n{config.SMALLEST}"


def test_a_backup_changes_nothing_on_the_nodes(site: Site) -> None:
    before = site.three.snapshot()
    site.back_up()
    assert site.three.snapshot() == before
    assert site.three.acts() == []


def test_pins_are_in_it(site: Site) -> None:
    with connector(site.registry)() as registry:
        store.restate(registry, FIXED.retention_key, lambda one: one.pinned(standing.Pin("team/app:v1", "mine", 5, 9)))
    assert contents_of(site, site.back_up()).pins == (Pin("team/app:v1", "mine", 5, 9),)


def test_the_list_of_members_is_in_it_with_those_who_have_left(site: Site) -> None:
    assert contents_of(site, site.back_up()).recorded is None
    listed = Members(7, site.three.cluster.members.nodes, former={"cp-9": "10.0.0.19"}, earlier={"cp-9": ("10.0.0.9",)})
    site.three.servers["cp-2"].put(members.PATH, listed.render())
    assert contents_of(site, site.back_up()).recorded == listed


def test_members_have_the_addresses_that_the_storage_knows(site: Site) -> None:
    run_workflow(INIT, site.three.cluster, Recorder(), skip=ELSEWHERE)
    for server in site.three.servers.values():
        server.put("/var/lib/kubeadm-registry/garage/meta/cluster_layout", b"a layout")
    (site.folder / "cluster.yaml").write_text(config.SMALLEST.replace("10.0.0.13", "10.0.0.99"))
    result = site("backup", "-o", "b", "--recipients-file", public(site.key), "-o", "json")
    assert [one.address for one in contents_of(site, Path("b")).members] == ["10.0.0.11", "10.0.0.12", "10.0.0.13"]
    assert result.exit_code == 5, "what it would be restored by is the file, which says something else"
    [text] = lines(result)[-1]["outdated"]
    assert "10.0.0.99" in text
    [warning] = [one["message"] for one in lines(result) if one.get("level") == "warning"]
    assert warning == f"the cluster file in it is not that of this registry: {text}"


def test_one_node_may_be_away(site: Site) -> None:
    site.away = {"cp-1"}
    path = site.back_up()
    assert contents_of(site, path).secrets == FIXED.found
    result = site("backup", "-o", path, "--recipients-file", public(site.key), "-o", "json")
    assert [one["host"] for one in lines(result) if one.get("level") == "warning"] == ["cp-1"]


def test_it_is_made_while_the_registry_is_down_if_that_is_asked_for(site: Site) -> None:
    site.registry.refuse = {("GET", "/v2/_catalog"): [403]}
    refused = error(site("backup", "-o", "b", "--recipients-file", public(site.key), "-o", "json"), 1)
    assert refused["code"] == "RegistryError"
    assert not (site.folder / "b").exists()
    found = contents_of(site, site.back_up("--no-images"))
    assert (found.images, found.secrets) == (None, FIXED.found)


@pytest.mark.parametrize("status", [500, 404], ids=["distribution", "zot"])
def test_an_image_whose_manifest_is_lost_is_named(site: Site, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "PATIENCE", 0.0)
    site.registry.refuse = {("HEAD", "/team/app/manifests/v1"): [status] * 9}
    result = site("backup", "-o", "b", "--recipients-file", public(site.key), "-o", "json")
    assert result.exit_code == 5, result.output
    last = lines(result)[-1]
    assert ([one["name"] for one in last["missing"]], last["images"]) == (["team/app:v1"], 1)
    assert [one.tag for one in contents_of(site, Path("b")).images or ()] == ["3.10"]


def test_a_storage_that_is_out_of_reach_writes_over_no_backup(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """zot says 404 for all that it cannot read."""
    monkeypatch.setattr(inventory, "PATIENCE", 0.0)
    before = site.back_up().read_bytes()
    site.registry.refuse = {(method, "/manifests/"): [404] * 99 for method in ("HEAD", "GET")}
    refused = error(site("backup", "-o", "backup", "--recipients-file", public(site.key), "-o", "json"), 1)
    assert refused["code"] == "RegistryNotWhole"
    assert Path("backup").read_bytes() == before


def test_nothing_that_it_is_made_of_is_replaced(site: Site) -> None:
    """The passphrase least of all: the backup could not be opened any more."""
    Path("words").write_text("correct horse battery staple\n")
    Path("keys").write_text(public(site.key).read_text())
    ways = [("words", ("--passphrase-file", "words")), ("keys", ("--recipients-file", "keys"))]
    for name, lock in [*ways, ("cluster.yaml", ways[0][1])]:
        before = Path(name).read_text()
        assert error(site("backup", "-o", name, *lock, "-o", "json"), 2)["code"] == "OutputInvalid"
        assert Path(name).read_text() == before


@pytest.mark.parametrize("status", [503, 404], ids=["no writer", "zot"])
def test_an_image_that_was_out_of_reach_for_a_moment_is_in_the_list(
    site: Site, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than it is asked for again; what comes after some lost ones is asked for once."""
    monkeypatch.setattr(inventory, "PATIENCE", 0.0)
    site.registry.refuse = {("HEAD", "/team/app/manifests/v1"): [status]}
    assert [one.repository for one in contents_of(site, site.back_up()).images or ()] == [PAUSE, "team/app"]


def test_a_repository_whose_list_of_tags_is_lost_is_named(site: Site) -> None:
    """zot says that there is none."""
    site.registry.nameless.add("team/app")
    result = site("backup", "-o", "b", "--recipients-file", public(site.key), "-o", "json")
    assert result.exit_code == 5, result.output
    assert lines(result)[-1]["missing"] == [{"name": "team/app", "reason": "the list of its tags cannot be read"}]


def test_a_tag_that_is_deleted_meanwhile_is_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = inventory.all_places

    def places(connect: Connect, records: Callable[[str], Collection[str]]) -> tuple[list[Place], Mapping[Place, str]]:
        found = listed(connect, records)
        site.registry.store["team/app"].tags.clear()
        return found

    monkeypatch.setattr(inventory, "all_places", places)
    assert [one.tag for one in contents_of(site, site.back_up()).images or ()] == ["3.10"]


WRONG = {
    "no file": ("--no-encryption",),
    "nothing that encrypts, and no terminal": ("-o", "b"),
    "two ways to encrypt": ("-o", "b", "--recipient", "age1x", "--no-encryption"),
    "a passphrase and keys": ("-o", "b", "--recipient", "age1x", "--passphrase-file", "cluster.yaml"),
    "a key that is none": ("-o", "b", "--recipient", "age1x"),
    "a passphrase that is not there": ("-o", "b", "--passphrase-file", "nowhere"),
    "a directory": ("-o", ".", "--no-encryption"),
    "a signing key that is not there": ("-o", "b", "--no-encryption", "--sign", "nowhere"),
    "a file that is not there": ("-o", "b", "--no-encryption", "-f", "nowhere"),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_a_wrong_command_line_contacts_nobody(site: Site, arguments: tuple[str, ...]) -> None:
    assert error(site("backup", *arguments, "-o", "json"), 2)["hint"]
    assert site.asked == []
    assert [entry.name for entry in site.folder.iterdir()] == ["cluster.yaml"]


def test_a_passphrase_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["correct horse", "correct horse", "one", "another", ""]
    monkeypatch.setattr(cli_backup.sys, "stdin", Mock(isatty=lambda: True))
    monkeypatch.setattr(terminal.getpass, "getpass", lambda _question: said.pop(0))
    ask = partial(cli_backup._lock, tmp_path / "b", None, (), (), unencrypted=False)
    assert ask() == Passphrase("correct horse")
    for words in ("they differ", "it is empty"):
        with pytest.raises(ConfigError, match=f"no passphrase: {words}"):
            ask()
    assert said == []


@pytest.mark.parametrize("failure", [EOFError(), UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "invalid start byte")])
def test_what_is_typed_at_a_hidden_prompt_may_be_nothing_or_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(cli_backup.sys, "stdin", Mock(isatty=lambda: True))
    monkeypatch.setattr(terminal.getpass, "getpass", Mock(side_effect=failure))
    with pytest.raises(ConfigError, match="no passphrase: it is empty, or not UTF-8 text"):
        cli_backup._lock(tmp_path / "b", None, (), (), unencrypted=False)
    assert cli_backup.key_for(Mock(index=Mock(encryption=PASSPHRASE)), None, ()) is None
    # Nodes that want a password for sudo are then told of, and an SSH key that has a passphrase is not used.
    assert (terminal.prompts().ask_sudo_password(), terminal.prompts().passphrase(tmp_path / "key")) == (None, None)


def test_the_library_is_loaded_only_where_something_is_encrypted() -> None:
    """Nodes do without it, and each start of the program is sooner."""
    code = "import sys, kubeadm_registry.cli.backup, kubeadm_registry.cli.restore; sys.exit('pyrage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unencrypted_only_by_word_and_with_a_warning(site: Site) -> None:
    result = site("backup", "-o", "b", "--no-encryption")
    assert result.exit_code == 0, result.output
    assert "warning: b is not encrypted" in result.output
    assert stat.S_IMODE((site.folder / "b").stat().st_mode) == 0o600


def test_no_backup_of_nothing(site: Site) -> None:
    site.lose()
    assert error(site("backup", "-o", "b", "--no-encryption", "-o", "json"), 1)["code"] == "NotInstalled"
    assert not (site.folder / "b").exists()


# ---- inspect, verify ------------------------------------------------------------------------------------------------


def test_inspect_shows_what_anybody_may_see_and_with_the_key_the_rest(site: Site) -> None:
    path = site.back_up("--sign", site.key)
    result = site("backup", "inspect", path)
    assert result.exit_code == 0, result.output
    assert f"registry  registry, generation {FIXED.generation}" in result.stdout
    assert "signed    by this CA, and by an SSH key" in result.stdout
    assert "3 nodes, 2 images; --identity FILE lists them" in result.stdout
    assert "team/app" not in result.stdout
    whole = site("backup", "inspect", path, "--identity", site.key)
    assert "node      cp-2           10.0.0.12" in whole.stdout
    assert f"image     team/app:v1  {site.registry.store['team/app'].tags['v1']}" in whole.stdout
    assert site("backup", "inspect", path, "--identity", site.key, "--cluster-file").stdout == (
        f"# of the site\n{config.SMALLEST}"
    )
    (described,) = lines(site("backup", "-o", "json", "inspect", path, "--identity", site.key))
    assert [one["name"] for one in described["images"]] == [f"{PAUSE}:3.10", "team/app:v1"]
    for word in (FIXED.push_password, FIXED.rpc_secret, FIXED.ca_key.splitlines()[1]):
        assert word not in whole.stdout + json.dumps(described)


def test_verify_says_by_what_it_was_compared(site: Site) -> None:
    path = site.back_up("--sign", site.key)
    (site.folder / "ca.crt").write_text(FIXED.ca_certificate)
    trusted = ("--ca", "ca.crt", "--key", public(site.key))
    result = site("backup", "verify", path, *trusted, "--identity", site.key)
    assert result.exit_code == 0, result.output
    assert "is signed by ED25519 key SHA256:" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("backup: OK (encrypted for 1 public key, 3 nodes, 2 images)")
    assert "its content was not read" in site("backup", "verify", path).stdout
    (site.folder / "ca.crt").write_text(pki.make_ca("registry").certificate)
    assert error(site("backup", "verify", path, *trusted, "-o", "json"), 1)["code"] == "BackupSignatureInvalid"
    path.write_bytes(path.read_bytes().replace(b"age-encryption", b"age-encruption"))
    assert error(site("backup", "verify", path, "-o", "json"), 1)["code"] == "BackupDamaged"
