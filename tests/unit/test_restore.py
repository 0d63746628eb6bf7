"""``restore``: from a backup and bundles onto bare servers, what is refused, and what is told of what cannot be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from kubeadm_registry import config, members, paths, pki, secrets
from kubeadm_registry.backup import Image, Pin, restoring, write
from kubeadm_registry.bundle.make import FromLayout, create
from kubeadm_registry.cli import restore as cli_restore
from kubeadm_registry.cluster import Cluster, read_vault
from kubeadm_registry.components import agent, garage
from kubeadm_registry.components.services import data_directories
from kubeadm_registry.engine.workflow import run as run_workflow
from kubeadm_registry.errors import Error, PhaseFailed
from kubeadm_registry.formats import Found
from kubeadm_registry.images import inventory
from kubeadm_registry.members import Members
from kubeadm_registry.phases.immutable import same_cluster
from kubeadm_registry.phases.workflows import RESTORE
from kubeadm_registry.retention import standing
from kubeadm_registry.secrets import Secrets
from kubeadm_registry.upkeep import store
from tests.unit.backup_site import FIXED, NAMES, PAUSE, Site, contents_of, error, lines
from tests.unit.bundle_files import image, write_layout
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster
from tests.unit.fake_images import Repositories, ScopedHandler, within
from tests.unit.fake_registry import connector, serving
from tests.unit.fakes import Dir
from tests.unit.test_workflow import ONE, Recorder, contents

pytestmark = pytest.mark.slow

pytest_plugins = ["tests.unit.backup_site"]

GARAGE = "/var/lib/kubeadm-registry/garage"
FOREIGN = Secrets.make("another", NAMES)


def bundle(site: Site, *names: str, since: Path | None = None) -> Path:
    """A bundle with an image under each of *names*."""
    path = site.folder.parent / f"bundle-{'-'.join(names).replace('/', '_')}.tar"
    layouts = [
        FromLayout(write_layout(path.with_suffix(f".{number}"), image(name, name.encode())))
        for number, name in enumerate(names)
    ]
    return create(path, {}, images=layouts, since=since, cache=site.folder.parent / "cache").path


def seed(site: Site, path: Path) -> None:
    result = site("seed", "--bundle", path)
    assert result.exit_code == 0, result.output


@pytest.fixture
def lost(site: Site) -> tuple[Path, Path]:
    """All servers are lost. The backup of before, and a bundle with one of the two images that were there."""
    site.empty()
    site.registry.image("team/app", "v1", layer=b"app")
    path = bundle(site, f"{PAUSE}:3.10")
    seed(site, path)
    backup = site.back_up()
    site.lose()
    return backup, path


def restore(site: Site, backup: Path, *arguments: str | Path) -> list[str | Path]:
    return ["restore", backup, "--identity", site.key, *arguments]


def stored(site: Site) -> list[Secrets]:
    return [Secrets.from_json(server.content(secrets.PATH)) for server in site.three.servers.values()]


# ---- what comes back ------------------------------------------------------------------------------------------------


def test_the_nodes_get_the_secrets_and_what_cannot_be_had_is_named(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    result = site(*restore(site, backup, "--bundle", path))
    assert result.exit_code == 5, result.output
    assert stored(site) == [FIXED] * 3
    assert "3.10" in site.registry.store[PAUSE].tags
    assert "warning: team/app:v1@sha256:" in result.output
    assert "in none of the bundles" in result.output
    assert result.stdout.splitlines()[-1] == "restored 1 of 2 images in the backup"
    again = lines(site(*restore(site, backup, "--bundle", path, "-o", "json")))[-1]
    assert (again["changed"], again["images"], len(again["missing"])) == (0, 2, 1)
    assert again["missing"][0]["reason"] == "in none of the bundles"


def test_with_all_bundles_all_is_back(site: Site) -> None:
    both = bundle(site, f"{PAUSE}:3.10", "docker.io/team/app:v1")
    site.empty()
    seed(site, both)
    backup = site.back_up()
    site.lose()
    result = site(*restore(site, backup, "--bundle", both))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "restored 2 of 2 images in the backup")


def test_a_tag_is_what_the_backup_says_also_if_a_later_bundle_has_another_image_of_it(site: Site) -> None:
    seeded = bundle(site, "docker.io/team/app:v1")
    other = write_layout(site.folder.parent / "other", image("docker.io/team/app:v1", b"other"))
    later = create(site.folder.parent / "later.tar", {}, images=[FromLayout(other)]).path
    site.empty()
    seed(site, seeded)
    before = {name: dict(one.tags) for name, one in site.registry.store.items() if name.endswith("team/app")}
    backup = site.back_up()
    site.lose()
    result = site(*restore(site, backup, "--bundle", seeded, "--bundle", later))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "restored 1 of 1 image in the backup")
    assert {name: dict(one.tags) for name, one in site.registry.store.items() if name in before} == before


def test_a_series_of_bundles_is_loaded_from_its_first_on_and_again(site: Site) -> None:
    first = bundle(site, f"{PAUSE}:3.10")
    second = bundle(site, f"{PAUSE}:3.10", f"{PAUSE}:3.11", since=first)
    site.empty()
    for path in (first, second):
        seed(site, path)
    backup = site.back_up()
    site.lose()
    given = restore(site, backup, "--bundle", second, "--bundle", first)
    assert site(*given).exit_code == 0
    before = {name: dict(one.tags) for name, one in site.registry.store.items()}
    result = site(*given)
    assert result.exit_code == 0, result.output
    assert "not loaded again, since a later bundle of its series was loaded" in result.output
    assert {name: dict(one.tags) for name, one in site.registry.store.items()} == before


def test_a_dry_run_changes_nothing_and_says_what_would_be_missing(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    before = site.three.snapshot()
    result = site(*restore(site, backup, "--bundle", path, "--dry-run", "--diff"))
    assert result.exit_code == 5, result.output
    assert site.three.snapshot() == before
    assert site.registry.store == {}
    assert f"{secrets.PATH}: as on the other nodes, generation {FIXED.generation}" in result.output
    assert result.stdout.splitlines()[-1].endswith("and restore 1 of 2 images in the backup")
    assert FIXED.push_password not in result.output


def test_a_backup_without_a_list_of_images_is_restored_as_well(site: Site) -> None:
    path, backup = bundle(site, f"{PAUSE}:3.10"), site.back_up("--no-images")
    site.lose()
    result = site(*restore(site, backup, "--bundle", path))
    assert result.exit_code == 0, result.output
    assert "3.10" in site.registry.store[PAUSE].tags
    assert "the backup has no list of images" in result.output


def test_an_image_that_has_another_digest_now_is_not_back() -> None:
    registry = Repositories()
    pair = pki.issue(pki.Pair(FIXED.ca_certificate, FIXED.ca_key), "x", ("127.0.0.1", "10.0.0.10"))
    there, other = registry.image("app", "v1"), "sha256:" + "00" * 32
    found = [Image("app", "v1", there.digest), Image("app", "v2", there.digest), Image("app", "v1", other)]
    reasons = {found[1]: "in none of the bundles"}
    with serving(registry, pair, ScopedHandler):
        missing = restoring.missing(connector(registry), found, reasons)
    assert [(one.name, one.why) for one in missing] == [
        (f"app:v2@{there.digest}", "in none of the bundles"),
        (f"app:v1@{other}", f"the tag is {there.digest} now"),
    ]


def test_an_image_that_cannot_be_read_is_not_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On nodes whose data stayed the storage may have lost a part of it: the others are told all the same."""
    monkeypatch.setattr(inventory, "PATIENCE", 0.0)
    registry = Repositories()
    found = [Image("app", tag, registry.image("app", tag, layer=tag.encode()).digest) for tag in ("v1", "v2")]
    lost = within(registry, lambda asked: httpx.Response(500) if asked.url.path.endswith("/v1") else None)
    [missing] = restoring.missing(lost, found, {})
    assert (missing.image.tag, "status 500" in missing.why) == ("v1", True)


# ---- pins -----------------------------------------------------------------------------------------------------------


def test_pins_come_back_and_none_is_written_over(site: Site) -> None:
    with connector(site.registry)() as registry:
        mine = standing.Pin("team/app:v1", "newer", 7)
        store.restate(registry, FIXED.retention_key, lambda one: one.pinned(mine))
        pins = (Pin("team/app:v1", "older", 5), Pin("team/db:v2", "data", 5, 9))
        for _ in range(2):
            restoring.pin(registry, FIXED.retention_key, pins)
            found = store.read_standing(registry, FIXED.retention_key).pins
            assert found == (mine, standing.Pin("team/db:v2", "data", 5, 9))


def test_pins_that_cannot_be_written_now_are_told(
    site: Site, lost: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, path = lost

    def nobody(_: Cluster) -> object:
        raise Error("no node holds the lease", code="NoExecutor")

    monkeypatch.setattr(cli_restore, "record_writer", nobody)
    found = contents_of(site, backup)
    write(backup, replace(found, images=None, pins=(Pin("team/app:v1", "mine", 5),)), None)
    result = site("restore", backup, "--bundle", path)
    assert result.exit_code == 5, result.output
    assert "the 1 pin of retention could not be restored: no node holds the lease; run restore again" in result.output


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_nodes_with_secrets_of_another_registry_are_refused(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    site.three.servers["cp-2"].put(secrets.PATH, FOREIGN.to_json(), 0o600)
    before = site.three.snapshot()
    refused = error(site(*restore(site, backup, "--bundle", path, "-o", "json")), 1)
    assert refused["code"] == "SecretsConflict"
    assert f"cp-2: {FOREIGN.generation}" in refused["message"]
    assert f"the backup: {FIXED.generation}" in refused["message"]
    assert "name bare nodes" in refused["hint"]
    assert site.three.snapshot() == before


def test_nodes_whose_secrets_changed_since_the_backup_are_refused(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    newer = replace(FIXED, push_password="rotated")
    site.three.servers["cp-2"].put(secrets.PATH, newer.to_json(), 0o600)
    refused = error(site(*restore(site, backup, "--bundle", path, "-o", "json")), 1)
    assert refused["code"] == "SecretsConflict"
    assert "different values of push_password" in refused["message"]
    assert "rotated" not in json.dumps(refused)


@pytest.mark.parametrize("ignore", [(), ("--ignore-preflight-errors", "all")])
def test_nodes_with_data_of_another_registry_are_refused(
    site: Site, lost: tuple[Path, Path], ignore: tuple[str, ...]
) -> None:
    backup, path = lost
    server = site.three.servers["cp-2"]
    server.put(f"{GARAGE}/{garage.NODE_KEY}", garage.node_key(FOREIGN, "cp-2"))
    before = site.three.snapshot()
    result = site(*restore(site, backup, "--bundle", path, *ignore))
    assert result.exit_code == 3, result.output
    assert "cp-2" in result.output and "has data of another registry" in result.output
    assert site.three.snapshot() == before


def test_data_that_was_written_with_these_secrets_stay(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    server = site.three.servers["cp-2"]
    server.put(f"{GARAGE}/{garage.NODE_KEY}", garage.node_key(FIXED, "cp-2"))
    server.put(f"{GARAGE}/data/block", b"of before")
    assert site(*restore(site, backup, "--bundle", path)).exit_code == 5
    assert server.content(f"{GARAGE}/data/block") == b"of before"
    assert stored(site) == [FIXED] * 3


def test_a_cluster_file_of_another_name_is_refused_before_anything_is_asked(
    site: Site, lost: tuple[Path, Path]
) -> None:
    backup, path = lost
    site.asked.clear()
    (site.folder / "cluster.yaml").write_text(config.SMALLEST.replace("{name: registry}", "{name: another}"))
    refused = error(site(*restore(site, backup, "--bundle", path, "-o", "json")), 2)
    assert refused["code"] == "BackupOfAnother"
    assert "metadata.name: is another, and the CA in " in refused["message"]
    assert site.asked == []


def test_a_wrong_command_line_contacts_nobody(site: Site, lost: tuple[Path, Path], tmp_path: Path) -> None:
    backup, path = lost
    site.asked.clear()
    (tmp_path / "ca.crt").write_text(pki.make_ca("registry").certificate)
    wrong = {
        ("--bundle", path): "BackupKeyNeeded",
        ("--bundle", path, "--identity", "nowhere"): "KeyUnreadable",
        ("--bundle", "nowhere", "--identity", site.key): "BundleMissing",
        ("--bundle", path, "--identity", site.key, "-f", "nowhere"): "ConfigUnreadable",
        ("--bundle", path, "--identity", site.key, "--ignore-preflight-errors", "none"): "CheckUnknown",
        ("--identity", site.key): "BundleMissing",
    }
    for arguments, code in wrong.items():
        assert error(site("restore", backup, *arguments, "-o", "json"), 2)["code"] == code, arguments
    forged = error(site(*restore(site, backup, "--bundle", path, "--ca", tmp_path / "ca.crt", "-o", "json")), 1)
    assert forged["code"] == "BackupSignatureInvalid"
    unsigned = error(site(*restore(site, backup, "--backup-key", f"{site.key}.pub", "-o", "json")), 1)
    assert unsigned["code"] == "BackupUnsigned"
    assert site.asked == []


# ---- other nodes ----------------------------------------------------------------------------------------------------


def test_names_and_addresses_of_nodes_may_be_others(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    text = config.SMALLEST.replace("cp-3", "cp-9").replace("10.0.0.12", "10.0.0.22")
    (site.folder / "cluster.yaml").write_text(text)
    site.three = FakeCluster.of(text)
    result = site(*restore(site, backup, "--bundle", path))
    assert result.exit_code == 5, result.output
    first, *others = stored(site)
    assert others == [first, first]
    assert first.node_keys.keys() == {"cp-1", "cp-2", "cp-9"}
    assert first.node_keys["cp-1"] == FIXED.node_keys["cp-1"]
    assert replace(first, node_keys=FIXED.node_keys) == FIXED
    again = lines(site(*restore(site, backup, "--bundle", path, "-o", "json")))[-1]
    assert again["changed"] == 0


def test_without_a_cluster_file_the_one_in_the_backup_counts(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    (site.folder / "cluster.yaml").unlink()
    assert site(*restore(site, backup, "--bundle", path)).exit_code == 5
    assert stored(site) == [FIXED] * 3


def test_another_virtual_ip_is_told(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    (site.folder / "cluster.yaml").write_text(config.SMALLEST.replace("10.0.0.10}", "10.0.0.40}"))
    result = site(*restore(site, backup, "--bundle", path, "--dry-run"))
    assert "the virtual IP was 10.0.0.10 and is 10.0.0.40 now: run `kubeadm-registry mirrors apply`" in result.output


def test_another_name_of_the_virtual_ip_is_told(site: Site) -> None:
    named = config.SMALLEST.replace("10.0.0.10}", "10.0.0.10, name: registry.example}")
    (site.folder / "cluster.yaml").write_text(named)
    kept = contents_of(site, site.back_up("--no-images"))
    assert list(restoring.differences(config.parse(named, "cluster.yaml"), kept)) == []
    [told] = restoring.differences(config.parse(config.SMALLEST, "cluster.yaml"), kept)
    assert told.startswith("spec.vip.name was registry.example and is not set now")


# ---- who had left ---------------------------------------------------------------------------------------------------

LISTED = Members(
    7, {"cp-1": "10.0.0.11", "cp-2": "10.0.0.12", "cp-3": "10.0.0.13"}, former={"cp-4": "10.0.0.14"},
    earlier={"cp-4": ("10.0.0.4",)},
)  # fmt: skip


@pytest.fixture(autouse=True)
def epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list's generation is not the time of the tests."""
    monkeypatch.setattr(cli_restore, "time", SimpleNamespace(time=lambda: 0.0))


def kept_out(site: Site) -> list[tuple[int, set[str]]]:
    """By node the generation of its list, and the addresses that it keeps out: list, agent and rules say the same."""
    found = []
    for server in site.three.servers.values():
        listed = members.parse(server.content(members.PATH))
        agent_config = json.loads(server.content(agent.CONFIG))
        addresses = {at for _, at in listed.left}
        assert agent_config["generation"] == listed.generation
        assert {one["address"] for one in agent_config.get("former", ())} == addresses
        rules = server.content(paths.GUARD).decode()
        assert not addresses or f"ip saddr {{ {', '.join(sorted(addresses))} }} tcp dport 3901 drop" in rules
        found.append((listed.generation, addresses))
    return found


def test_who_had_left_stays_kept_out_and_knows_an_older_list(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    write(backup, replace(contents_of(site, backup), recorded=LISTED), None)
    assert site("restore", backup, "--bundle", path).exit_code == 5
    assert kept_out(site) == [(1007, {"10.0.0.4", "10.0.0.14"})] * 3
    again = lines(site("restore", backup, "--bundle", path, "-o", "json"))[-1]
    assert again["changed"] == 0
    assert kept_out(site) == [(1007, {"10.0.0.4", "10.0.0.14"})] * 3


def test_a_node_of_a_list_that_is_younger_than_the_backup_learns_that_it_is_no_member(
    site: Site, lost: tuple[Path, Path]
) -> None:
    """An agent believes so only one with a later list (``agent.rules.removed``)."""
    backup, _ = lost
    found = replace(contents_of(site, backup), recorded=LISTED)
    last = LISTED.changed_to({**LISTED.nodes, "cp-3": "10.0.0.33"}).settle()
    last = last.changed_to({**last.nodes, "cp-2": "10.0.0.22"}).settle()
    after = restoring.members_for(replace(site.three.cluster, recorded=None), found, 0)
    assert after is not None
    assert after.generation > last.generation > LISTED.generation


def test_a_second_restore_from_a_backup_is_later_than_what_came_of_the_first(
    site: Site, lost: tuple[Path, Path]
) -> None:
    backup, _ = lost
    found = replace(contents_of(site, backup), recorded=LISTED)
    bare = replace(site.three.cluster, recorded=None)
    first, second = (restoring.members_for(bare, found, minutes) for minutes in (29_000_000, 29_000_060))
    assert first is not None
    assert second is not None
    changed = first.changed_to({**LISTED.nodes, "cp-3": "10.0.0.33"}).settle()
    assert second.generation > changed.generation > first.generation > LISTED.generation


def test_addresses_that_are_not_used_again_are_kept_out(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    write(backup, replace(contents_of(site, backup), recorded=LISTED), None)
    text = config.SMALLEST.replace("cp-3", "cp-4").replace("10.0.0.13", "10.0.0.14").replace("10.0.0.12", "10.0.0.22")
    (site.folder / "cluster.yaml").write_text(text)
    site.three = FakeCluster.of(text)
    assert site("restore", backup, "--bundle", path).exit_code == 5
    assert kept_out(site) == [(1007, {"10.0.0.4", "10.0.0.12", "10.0.0.13"})] * 3
    assert lines(site("restore", backup, "--bundle", path, "-o", "json"))[-1]["changed"] == 0


def test_a_backup_without_the_list_keeps_out_those_whom_the_storage_knew(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    text = config.SMALLEST.replace("10.0.0.12", "10.0.0.22")
    (site.folder / "cluster.yaml").write_text(text)
    site.three = FakeCluster.of(text)
    assert site(*restore(site, backup, "--bundle", path)).exit_code == 5
    assert kept_out(site) == [(1001, {"10.0.0.12"})] * 3


def test_nodes_with_a_list_of_this_very_registry_keep_it(site: Site, lost: tuple[Path, Path]) -> None:
    """It is as young as the one in the backup, or younger."""
    backup, _ = lost
    found = replace(contents_of(site, backup), recorded=LISTED)
    cluster = site.three.cluster
    for there in (LISTED, LISTED.without({**LISTED.nodes, "cp-4": "10.0.0.14"})):
        assert restoring.members_for(replace(cluster, recorded=there), found, 0) is there
    older = replace(cluster, recorded=Members(6, LISTED.nodes))
    after = restoring.members_for(older, found, 0)
    assert after is not None
    assert (after.generation, after.left) == (1007, LISTED.left)


def test_data_of_other_members_is_refused(site: Site, lost: tuple[Path, Path]) -> None:
    """A reset left it, and the file of the nodes is not that of then."""
    backup, _ = lost
    text = config.SMALLEST.replace("cp-3", "cp-9")
    fake = FakeCluster.of(text)
    fake.servers["cp-1"].put(f"{GARAGE}/meta/cluster_layout", b"layout")
    found = replace(contents_of(site, backup), recorded=LISTED)
    cluster = replace(fake.cluster, recorded=restoring.members_for(fake.cluster, found, 0))
    (told,) = same_cluster(cluster, cluster.hosts[0])
    assert "the file adds cp-9 and omits cp-3" in told


# ---- of an earlier release ------------------------------------------------------------------------------------------


def test_a_secret_that_the_backup_lacks_is_made_once(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    found = contents_of(site, backup)
    less = {name: value for name, value in FIXED.found.values.items() if name != "retention_key"}
    write(backup, replace(found, secrets=Found(less)), None)
    for changed in (True, False):
        result = lines(site("restore", backup, "--bundle", path, "-o", "json"))[-1]
        assert (result["event"], bool(result["changed"])) == ("result", changed)
    first, *others = stored(site)
    assert others == [first, first]
    assert replace(first, retention_key=FIXED.retention_key) == FIXED != first


# ---- interrupted ----------------------------------------------------------------------------------------------------


def with_backup(fake: FakeCluster) -> Cluster:
    """What a run of ``restore`` begins with."""
    hosts = fake.cluster_hosts()
    kept = replace(FIXED, node_keys={"cp-1": FIXED.node_keys["cp-1"]}).to_json()
    vault = read_vault(fake.config, hosts, data_directories(fake.config.spec), kept)
    return Cluster(fake.config, hosts, vault, fake.programs)


def everything(fake: FakeCluster) -> int:
    return len(run_workflow(RESTORE, with_backup(fake), Recorder(), skip=ELSEWHERE))


def test_interrupted_at_any_act_it_is_completed_by_the_next_run() -> None:
    whole = FakeCluster.of(ONE, fixed=False)
    everything(whole)
    acts = whole.servers["cp-1"].acts
    assert len(acts) > 50
    differences = {}
    for number in range(len(acts)):
        fake = FakeCluster.of(ONE, fixed=False)
        cluster = with_backup(fake)
        fake.servers["cp-1"].cut_at = number
        with pytest.raises(PhaseFailed):
            run_workflow(RESTORE, cluster, Recorder(), skip=ELSEWHERE)
        everything(fake)
        if everything(fake) or contents(fake) != contents(whole):
            differences[number] = acts[number]
    assert not differences
    assert Secrets.from_json(whole.servers["cp-1"].content(secrets.PATH)).push_password == FIXED.push_password


def test_a_node_with_the_secrets_of_a_backup_has_the_list_that_keeps_out_machines_of_before() -> None:
    """A run was killed between the two, and `init`, which knows no backup, had begun a list anew."""
    listed = Members(1007, {"cp-1": "10.0.0.11"}, former={"cp-4": "10.0.0.14"})
    whole = FakeCluster.of(ONE, fixed=False)
    run_workflow(RESTORE, replace(with_backup(whole), recorded=listed), Recorder(), skip=ELSEWHERE)
    without = []
    for number, act in enumerate(whole.servers["cp-1"].acts):
        fake = FakeCluster.of(ONE, fixed=False)
        server, cluster = fake.servers["cp-1"], replace(with_backup(fake), recorded=listed)
        server.cut_at = number
        with pytest.raises(PhaseFailed):
            run_workflow(RESTORE, cluster, Recorder(), skip=ELSEWHERE)
        if secrets.PATH in server.tree and members.PATH not in server.tree:
            without.append(act)
    assert not without
    assert members.parse(whole.servers["cp-1"].content(members.PATH)) == listed


def test_an_empty_data_directory_is_no_data(site: Site, lost: tuple[Path, Path]) -> None:
    backup, path = lost
    site.three.servers["cp-1"].tree[f"{GARAGE}/meta/lost+found"] = Dir()
    assert site(*restore(site, backup, "--bundle", path)).exit_code == 5
