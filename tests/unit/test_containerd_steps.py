"""The changes on a host: what init writes, what a second run does, what reset leaves."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry.containerd import OWED, ContainerdSettings, notices, problems, restore_steps, steps, survey
from kubeadm_registry.containerd.changes import DROP_IN
from kubeadm_registry.containerd.http_proxy import ENVIRONMENT
from kubeadm_registry.containerd.settings import Refused
from kubeadm_registry.engine.changes import Change
from kubeadm_registry.errors import CommandFailed, Error
from kubeadm_registry.transport.host import Host
from tests.unit.containerd_host import Rooted, host

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden" / "containerd"
#: The others are merged and taken back as text, in test_containerd_config.py; here it is the way through a host.
CASES = ["comments-1.7", "crlf-1.7", "debian-1.6", "empty-2.1", "no-final-newline-2.1", "version-1-1.7"]
CONFIG = "/etc/containerd/config.toml"
CRI = '[plugins."io.containerd.grpc.v1.cri".registry]\n'
CERTS = "/etc/containerd/certs.d"
SETTINGS = ContainerdSettings(
    vip_addresses=("10.0.0.10", "fd00::10"),
    vip_name="registry.lan",
    ca_pem=b"-----BEGIN CERTIFICATE-----\n",
    mirrors=("registry.k8s.io", "docker.io"),
    sandbox_image="registry.k8s.io/pause:3.10.2",
    node_addresses=("10.0.0.11",),
)


@pytest.fixture
def rooted(tmp_path: Path) -> Rooted:
    return Rooted(tmp_path)


def run(changes: Iterator[Change], on: Host) -> list[str]:
    """What the engine does: compare, apply, compare again."""
    done = []
    for change in changes:
        if change.diff(on.as_read_only()) is not None:
            change.apply(on)
            assert change.diff(on.as_read_only()) is None, f"{change.title} does not converge"
            done.append(change.title)
    return done


def init(rooted: Rooted, settings: ContainerdSettings = SETTINGS) -> list[str]:
    return run(steps(host(rooted), settings=settings), host(rooted))


def reset(rooted: Rooted) -> list[str]:
    return run(restore_steps(host(rooted)), host(rooted))


def without_ours(tree: dict[str, tuple[int, bytes | None]]) -> dict[str, tuple[int, bytes | None]]:
    """The tree without /etc/kubeadm-registry, whose removal is not containerd's business."""
    return {path: entry for path, entry in tree.items() if not path.startswith("etc/kubeadm-registry")}


def test_a_login_that_others_may_read_is_for_root_alone_again(rooted: Rooted) -> None:
    """As after /etc was restored by a tool that keeps no modes."""
    private = replace(SETTINGS, authorization="Basic cHVsbDpzZWNyZXQ=")
    init(rooted, private)
    file, ca = rooted.path(f"{CERTS}/docker.io/hosts.toml"), rooted.path(f"{CERTS}/kubeadm-registry-ca.crt")
    assert (file.stat().st_mode & 0o777, ca.stat().st_mode & 0o777) == (0o600, 0o644)
    file.chmod(0o644)
    said = [one.diff(host(rooted)) for one in steps(host(rooted), settings=private)]
    assert f"{CERTS}/docker.io/hosts.toml: mode 644 -> 600" in said
    assert init(rooted, private) == [f"write hosts.toml files in {CERTS}"]
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o400)
    assert not init(rooted, private)
    init(rooted)
    file.chmod(0o664)
    assert not init(rooted), "without a login it is anybody's to read"


@pytest.mark.parametrize("case", CASES)
def test_init_merges_and_reset_brings_every_byte_back(rooted: Rooted, case: str) -> None:
    original = (GOLDEN / case / "original.toml").read_bytes()
    rooted.says_version(case.rpartition("-")[2])
    rooted.put(CONFIG, original, 0o640)
    before = rooted.tree()
    init(rooted)
    assert rooted.path(CONFIG).read_bytes() == (GOLDEN / case / "merged.toml").read_bytes()
    assert rooted.path(CONFIG).stat().st_mode & 0o777 == 0o640
    assert not init(rooted), "a second run does nothing"
    reset(rooted)
    assert without_ours(rooted.tree()) == before
    assert not reset(rooted), "a second reset does nothing"


def test_what_was_there_is_backed_up_in_one_step(rooted: Rooted) -> None:
    assert init(rooted).count("back up containerd's configuration") == 1


def test_files(rooted: Rooted) -> None:
    done = init(rooted)
    assert done[-1] == "restart containerd.service"
    assert {path.name for path in rooted.path(CERTS).iterdir()} == {
        "kubeadm-registry-ca.crt", "registry.k8s.io", "docker.io",
        "10.0.0.10_5000_", "[fd00::10]_5000_", "registry.lan_5000_",
    }  # fmt: skip
    assert rooted.path(f"{CERTS}/kubeadm-registry-ca.crt").read_bytes() == SETTINGS.ca_pem


def test_without_a_file_one_is_made_and_goes_again(rooted: Rooted) -> None:
    rooted.path("/etc/containerd").rmdir()
    before = rooted.tree()
    init(rooted)
    text = rooted.path(CONFIG).read_text()
    assert text.startswith("# Written by kubeadm-registry")
    assert "version = 2" in text
    assert not init(rooted)
    reset(rooted)
    assert without_ours(rooted.tree()) == before


def test_a_made_file_that_was_edited_keeps_the_edit(rooted: Rooted) -> None:
    init(rooted)
    with rooted.path(CONFIG).open("a") as file:
        file.write('[debug]\n  level = "debug"\n')
    reset(rooted)
    assert rooted.path(CONFIG).read_text().strip().endswith('[debug]\n  level = "debug"')
    assert "registry" not in rooted.path(CONFIG).read_text()


def test_an_edit_since_stays_and_ours_goes(rooted: Rooted) -> None:
    original = (GOLDEN / "debian-1.7" / "original.toml").read_text()
    rooted.put(CONFIG, original)
    init(rooted)
    edit = original.replace('conf_dir = "/etc/cni/net.d"', 'conf_dir = "/srv/cni"')
    rooted.put(CONFIG, rooted.path(CONFIG).read_text().replace('"/etc/cni/net.d"', '"/srv/cni"'))
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == edit


def test_an_edit_before_a_later_init_is_not_taken_for_ours(rooted: Rooted) -> None:
    original = (GOLDEN / "debian-1.7" / "original.toml").read_text()
    rooted.put(CONFIG, original)
    init(rooted)
    rooted.put(CONFIG, original + "# mine\n")
    assert init(rooted), "our keys are missing again"
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == original + "# mine\n"


def test_a_later_pause_image_of_ours_leaves_the_way_back(rooted: Rooted) -> None:
    original = (GOLDEN / "default-1.7" / "original.toml").read_bytes()
    rooted.put(CONFIG, original)
    init(rooted, replace(SETTINGS, sandbox_image="registry.k8s.io/pause:3.10"))
    assert init(rooted)
    assert b"pause:3.10.2" in rooted.path(CONFIG).read_bytes()
    reset(rooted)
    assert rooted.path(CONFIG).read_bytes() == original


@pytest.mark.parametrize("line", ['  sandbox_image = "registry.k8s.io/pause:3.9"\n', ""], ids=["changed", "removed"])
def test_the_way_back_is_what_the_user_wrote_between_two_runs(rooted: Rooted, line: str) -> None:
    original = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "registry.k8s.io/pause:3.8"\n'
    rooted.put(CONFIG, original)
    init(rooted)
    ours = '  sandbox_image = "registry.k8s.io/pause:3.10.2"\n'
    rooted.put(CONFIG, rooted.path(CONFIG).read_text().replace(ours, line))
    assert init(rooted)
    assert ours in rooted.path(CONFIG).read_text()
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == "".join([*original.splitlines(True)[:2], line])


def test_a_pause_image_of_an_earlier_cluster_file_is_replaced(rooted: Rooted) -> None:
    rooted.put(CONFIG, "version = 2\n")
    init(rooted, replace(SETTINGS, sandbox_image="registry.k8s.io/pause:4.0"))
    init(rooted, replace(SETTINGS, sandbox_image="registry.k8s.io/pause:4.1"))
    assert "pause:4.1" in rooted.path(CONFIG).read_text()


_REGISTRY = '[plugins."io.containerd.grpc.v1.cri".registry'
LOGINS = (
    f'{_REGISTRY}]\n{_REGISTRY}.configs."a:1".auth]\n\'identitytoken\'=\'x-y-z\'\npassword = "p\\"x-y-z" # mine\n',
    f'{_REGISTRY}]\nconfigs = {{"a:1" = {{auth = {{username = "u", auth = """x-y-z"""}}}}}}\n',
    f'{_REGISTRY.removesuffix(".registry")}]\nregistry = {{configs = {{"a:1" = {{auth = {{"password"="x-y-z"}}}}}}}}\n',
)


@pytest.mark.parametrize("text", LOGINS, ids=["tables", "table in line", "all in line"])
def test_no_diff_shows_a_login_that_stands_beside_what_changes(rooted: Rooted, text: str) -> None:
    text = f"version = 2\n{text}"
    rooted.put(CONFIG, text)
    shown = [change.diff(host(rooted)) or "" for change in steps(host(rooted), settings=SETTINGS)]
    assert any("+" in diff and "config_path" in diff for diff in shown)
    assert "x-y-z" not in "".join(shown)
    init(rooted)
    assert "x-y-z" in rooted.path(CONFIG).read_text()
    shown = [change.diff(host(rooted)) or "" for change in restore_steps(host(rooted))]
    assert any("-" in diff and "config_path" in diff for diff in shown)
    assert "x-y-z" not in "".join(shown)


def test_a_symbolic_link_stays_one(rooted: Rooted) -> None:
    target = rooted.put("/srv/containerd.toml", "version = 2\n")
    rooted.path(CONFIG).symlink_to(target)
    init(rooted)
    assert rooted.path(CONFIG).is_symlink()
    assert "config_path" in target.read_text()
    reset(rooted)
    assert rooted.path(CONFIG).is_symlink()
    assert target.read_text() == "version = 2\n"


def test_the_file_that_the_unit_names_is_edited(rooted: Rooted) -> None:
    rooted.unit(ExecStart=f"{{ path={rooted.root}/usr/bin/containerd ; argv[]=/usr/bin/containerd -c /srv/c.toml ; }}")
    rooted.put("/srv/c.toml", "version = 2\n")
    init(rooted)
    assert "config_path" in rooted.path("/srv/c.toml").read_text()
    assert not rooted.path(CONFIG).exists()


def test_an_imported_file_that_has_the_table_is_edited(rooted: Rooted) -> None:
    rooted.put(CONFIG, 'version = 2\nimports = ["conf.d/*.toml"]\n')
    rooted.put("/etc/containerd/conf.d/a.toml", "version = 2\n")
    cri = rooted.put("/etc/containerd/conf.d/b.toml", 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n')
    init(rooted)
    assert "config_path" in cri.read_text()
    assert "config_path" not in rooted.path(CONFIG).read_text()


def test_in_1_6_a_relative_pattern_is_none_of_the_files_beside(rooted: Rooted) -> None:
    rooted.says_version("1.6.20")
    rooted.put(CONFIG, 'version = 2\nimports = ["conf.d/*.toml"]\n')
    rooted.put("/etc/containerd/conf.d/b.toml", 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n')
    init(rooted)
    assert "config_path" in rooted.path(CONFIG).read_text()


@pytest.mark.parametrize("version", ["2.1.9", "2.4.2"])
def test_an_empty_path_in_a_later_file_counts(rooted: Rooted, version: str) -> None:
    """2.x merges key by key, and an empty value is one."""
    rooted.says_version(version)
    rooted.put(CONFIG, 'version = 2\nimports = ["b.toml"]\n' + CRI + 'config_path = "/etc/mine"\n')
    later = rooted.put("/etc/containerd/b.toml", "version = 2\n" + CRI + 'config_path = ""\n')
    before = rooted.tree()
    init(rooted)
    assert f'config_path = "{CERTS}"' in later.read_text()
    assert rooted.path(f"{CERTS}/docker.io/hosts.toml").exists()
    assert not init(rooted)
    reset(rooted)
    assert without_ours(rooted.tree()) == before


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "2.1.9", "2.4.2"])
def test_a_host_without_a_configuration(rooted: Rooted, version: str) -> None:
    """``config dump`` of 1.x fails there, and containerd runs."""
    rooted.says_version(version)
    rooted.path("/etc/containerd").rmdir()
    before = rooted.tree()
    assert not list(problems(host(rooted)))
    init(rooted)
    assert not init(rooted)
    assert not list(problems(host(rooted)))
    reset(rooted)
    assert without_ours(rooted.tree()) == before


def test_what_is_not_in_force_afterwards_is_put_back(rooted: Rooted) -> None:
    """Whatever the reason: this containerd says the same of any file."""
    rooted.put(CONFIG, "version = 2\n")
    rooted.put("/stub/dump", "version = 2\n")
    with pytest.raises(Refused, match=rf"config_path should be {CERTS} and is unset.* are reverted"):
        init(rooted)
    assert rooted.path(CONFIG).read_text() == "version = 2\n"
    assert not rooted.path(CERTS).exists(), "hosts files come after it"
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == "version = 2\n"


def test_a_pause_image_under_an_old_name_stays(rooted: Rooted) -> None:
    """From 2.3 on the old plugin's keys count in files of version 3 as well, and win."""
    rooted.says_version("2.4.2")
    text = 'version = 3\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "own/pause:1"\n'
    rooted.put(CONFIG, text)
    assert not list(problems(host(rooted)))
    init(rooted)
    assert "the pause image is own/pause:1" in next(notices(host(rooted), SETTINGS))
    assert rooted.path(CONFIG).read_text().startswith(text)
    assert "pinned_images" not in rooted.path(CONFIG).read_text()


def test_what_is_not_in_force_before_is_found_before_any_change(rooted: Rooted) -> None:
    """2.1 merges tables of version 3 of a file of version 2, although only those of version 2 should count in it."""
    rooted.says_version("2.1.9")
    rooted.put(CONFIG, 'version = 2\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/etc/mine"\n')
    before = rooted.tree()
    assert "config_path should be unset and is /etc/mine" in next(problems(host(rooted)))
    with pytest.raises(Refused, match="; another table or file takes precedence"):
        init(rooted)
    assert rooted.tree() == before


@pytest.mark.parametrize("version", ["2.0.5", "2.1.9"])
def test_names_of_version_1_that_2_x_ignores_are_found_by_preflight(rooted: Rooted, version: str) -> None:
    """After an upgrade from 1.7, where the mirrors were in force by these very names."""
    rooted.put(CONFIG, '[plugins.cri]\nsandbox_image = "own/pause:1"\n')
    init(rooted)
    assert "config_path" in rooted.path(CONFIG).read_text()
    rooted.says_version(version)
    before = rooted.tree()
    (found,) = problems(host(rooted))
    assert f"containerd {version}~ds1 ignores [plugins.cri] in a file without version = 2" in found
    assert 'add "version = 2" at its top' in found
    with pytest.raises(Refused, match="ignores"):
        init(rooted)
    assert rooted.tree() == before
    text = rooted.path(CONFIG).read_text().replace("plugins.cri", 'plugins."io.containerd.grpc.v1.cri"')
    rooted.put(CONFIG, "version = 2\n" + text)
    assert not list(problems(host(rooted))), "the remedy is one"


def test_names_of_version_1_count_again_from_2_3_on(rooted: Rooted) -> None:
    rooted.says_version("2.4.2")
    rooted.put(CONFIG, '[plugins.cri]\nsandbox_image = "registry.k8s.io/pause:3.8"\n')
    assert not list(problems(host(rooted)))
    init(rooted)
    assert not init(rooted)


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "2.1.9", "2.4.2"])
def test_an_empty_list_of_disabled_plugins_makes_no_version_1(rooted: Rooted, version: str) -> None:
    """What is left of the file of Docker's package once its "cri" is taken out."""
    rooted.says_version(version)
    rooted.put(CONFIG, "disabled_plugins = []\n")
    init(rooted)
    assert "[plugins.cri" not in rooted.path(CONFIG).read_text()
    assert not init(rooted)
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == "disabled_plugins = []\n"


def test_a_version_that_the_user_wrote_since_stays(rooted: Rooted) -> None:
    """Without it containerd 1.x would take the file for one of version 1, and SystemdCgroup would be lost."""
    rooted.put(CONFIG, "# nothing\n")
    init(rooted)
    assert "version = 2" in rooted.path(CONFIG).read_text()
    mine = (
        (GOLDEN / "default-1.7" / "original.toml").read_text().replace("SystemdCgroup = false", "SystemdCgroup = true")
    )
    rooted.put(CONFIG, mine)
    reset(rooted)
    assert rooted.path(CONFIG).read_text() == mine


def test_hosts_files_of_others_stay(rooted: Rooted) -> None:
    mine = rooted.put(f"{CERTS}/docker.io/hosts.toml", 'server = "https://mine.lan"\n')
    other = rooted.put(f"{CERTS}/10.0.0.10:5000/hosts.toml", "# mine\n")
    rooted.put(f"{CERTS}/_default/hosts.toml", "# mine\n")
    before = rooted.tree()
    init(rooted)
    assert mine.read_text() == 'server = "https://mine.lan"\n'
    assert other.read_text() == "# mine\n"
    assert not rooted.path(f"{CERTS}/10.0.0.10_5000_").exists(), "it would hide the other"
    said = list(notices(host(rooted), SETTINGS))
    assert [line.split(" ")[0].removeprefix(f"{CERTS}/") for line in said] == [
        "docker.io/hosts.toml", "10.0.0.10:5000/hosts.toml", "_default/hosts.toml",
    ]  # fmt: skip
    reset(rooted)
    assert without_ours(rooted.tree()) == before


@pytest.mark.parametrize("mirrors", [("docker.io",), ("*",)])
def test_a_hosts_file_that_ours_hides_in_a_list_of_directories_is_named(
    rooted: Rooted, mirrors: tuple[str, ...]
) -> None:
    rooted.put(CONFIG, f'version = 2\n{CRI}config_path = "/etc/a:/etc/b"\n')
    rooted.put("/etc/b/docker.io/hosts.toml", 'server = "https://mine"\n')
    rooted.put("/etc/b/harbor.lan/hosts.toml", 'server = "https://harbor.lan"\n')
    settings = replace(SETTINGS, mirrors=mirrors)
    init(rooted, settings)
    said = [text.split(" ")[0] for text in notices(host(rooted), settings) if "comes first in config_path" in text]
    names = ["docker.io"] if mirrors == ("docker.io",) else ["docker.io", "harbor.lan"]
    assert said == [f"/etc/b/{name}/hosts.toml" for name in names]


def test_an_edited_hosts_file_of_ours_stays_until_reset(rooted: Rooted) -> None:
    init(rooted)
    path = rooted.path(f"{CERTS}/docker.io/hosts.toml")
    mine = '[host."https://mine.lan"]\n  capabilities = ["pull"]\n'
    path.write_text(path.read_text() + mine)
    assert not init(rooted)
    assert "edited since" in next(notices(host(rooted), SETTINGS))
    reset(rooted)
    assert path.read_text() == mine


def test_a_mirror_that_is_no_longer_wanted_goes(rooted: Rooted) -> None:
    init(rooted)
    restarts = rooted.restarts
    init(rooted, replace(SETTINGS, mirrors=("registry.k8s.io",)))
    assert not rooted.path(f"{CERTS}/docker.io/hosts.toml").exists()
    assert rooted.restarts == restarts, "hosts files are read at every pull"


def test_the_mirror_of_every_registry_is_not_hidden_by_an_empty_directory(rooted: Rooted) -> None:
    """containerd looks into ``_default`` only if a registry has no directory of its own."""
    init(rooted)
    theirs = rooted.put("/etc/containerd/certs.d/docker.io/ca.crt", "theirs\n")
    init(rooted, replace(SETTINGS, mirrors=("*",)))
    certs = rooted.path("/etc/containerd/certs.d")
    assert (certs / "_default" / "hosts.toml").exists()
    assert not (certs / "registry.k8s.io").exists()
    assert [path.name for path in theirs.parent.iterdir()] == ["ca.crt"], "what others put there stays"
    assert init(rooted, replace(SETTINGS, mirrors=("*",))) == []
    told = [text for text in notices(host(rooted), replace(SETTINGS, mirrors=("*",))) if "no hosts.toml" in text]
    assert [text.split()[0] for text in told] == ["/etc/containerd/certs.d/docker.io"]
    assert not [text for text in notices(host(rooted), SETTINGS) if "no hosts.toml" in text]
    init(rooted)
    assert not (certs / "_default").exists()


def test_a_containerd_that_needs_nothing_is_not_restarted(rooted: Rooted) -> None:
    rooted.put(CONFIG, (GOLDEN / "lab-1.7" / "original.toml").read_bytes())
    init(rooted)
    reset(rooted)
    assert rooted.restarts == 0


def test_an_interrupted_restart_is_made_up_for(rooted: Rooted) -> None:
    for change in steps(host(rooted), settings=SETTINGS):
        if change.title.startswith("restart"):
            break
        change.apply(host(rooted))
    assert init(rooted) == ["restart containerd.service"]


def test_where_a_restart_cannot_be_noted_nothing_is_changed(rooted: Rooted) -> None:
    """/run is full: the next run would find all files as they should be, and no restart that is owed."""
    original = rooted.put("/etc/containerd/config.toml", "version = 2\n")
    note = rooted.path(f"{OWED}.new")
    note.parent.mkdir(parents=True)
    note.symlink_to("/dev/full")
    with pytest.raises(CommandFailed):
        init(rooted)
    assert original.read_text() == "version = 2\n"
    note.unlink(missing_ok=True)
    assert "restart containerd.service" in init(rooted)


def test_a_restart_by_somebody_else_counts(rooted: Rooted) -> None:
    for change in steps(host(rooted), settings=SETTINGS):
        if change.title.startswith("restart"):
            break
        change.apply(host(rooted))
    rooted.unit(InvocationID="another")
    assert not init(rooted)


def test_a_failed_restart_says_why_and_is_tried_again(rooted: Rooted) -> None:
    rooted.put("/stub/refuses", "")
    with pytest.raises(Error, match="it failed") as caught:
        init(rooted)
    assert caught.value.code == "ContainerdRestart"
    rooted.path("/stub/refuses").unlink()
    assert init(rooted) == ["restart containerd.service"]


def test_a_plugin_that_does_not_start_is_an_error(rooted: Rooted) -> None:
    rooted.put("/stub/plugins", "TYPE ID PLATFORMS STATUS\nio.containerd.grpc.v1 cri linux/amd64 error\n")
    with pytest.raises(Error, match="its plugin cri does not"):
        init(rooted)


def test_proxy(rooted: Rooted) -> None:
    rooted.unit(Environment="HTTPS_PROXY=http://p:3128 NO_PROXY=localhost,10.0.0.0/8")
    rooted.put("/etc/default/containerd", 'NO_PROXY="localhost"\n')
    files = f"{rooted.root}/etc/default/containerd"
    rooted.unit(EnvironmentFiles=f"{files} (ignore_errors=yes)")
    before = rooted.tree()
    init(rooted)
    assert rooted.path(ENVIRONMENT).read_text() == "NO_PROXY=localhost,10.0.0.10,fd00::10,registry.lan,10.0.0.11\n"
    assert f"EnvironmentFile=-{ENVIRONMENT}" in rooted.path(DROP_IN).read_text()
    # systemd now names our file as well, and it must not be taken for the user's.
    with (rooted.stub / "unit").open("a") as file:
        file.write(f"EnvironmentFiles={rooted.root}{ENVIRONMENT} (ignore_errors=yes)\n")
    assert not init(rooted)
    reset(rooted)
    assert without_ours(rooted.tree()) == before


def test_a_list_with_blanks_where_systemctl_does_not_show_it(rooted: Rooted) -> None:
    """As that of systemd 239, RHEL 8's."""
    rooted.unit(Environment="HTTPS_PROXY=http://p:3128 [unprintable]")
    busctl = rooted.put("/usr/bin/busctl", '#!/bin/sh\ncat "$STUB/bus"\n', 0o755)
    (rooted.stub / "bus").write_text('as 2 "HTTPS_PROXY=http://p:3128" "NO_PROXY=localhost, .lan"\n')
    shown = survey.ask(host(rooted))
    assert shown is not None
    expected = {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "localhost, .lan"}
    assert survey.environment(host(rooted), shown) == expected
    busctl.write_text("#!/bin/sh\nexit 1\n")
    shown = survey.ask(host(rooted))
    assert shown is not None
    assert survey.environment(host(rooted), shown) == {"HTTPS_PROXY": "http://p:3128"}


def test_no_proxy_no_drop_in(rooted: Rooted) -> None:
    init(rooted)
    assert not rooted.path(DROP_IN).exists()


def test_problems(rooted: Rooted) -> None:
    rooted.put(CONFIG, 'disabled_plugins = ["cri"]\n')
    rooted.unit(ActiveState="failed")
    found = list(problems(host(rooted)))
    assert len(found) == 2
    assert "is not running" in found[0]
    assert 'remove "cri" from disabled_plugins' in found[1]
    assert "if kubelet uses CRI-O or cri-dockerd here, leave the node out" in found[1]
    rooted.put(CONFIG, "oops")
    assert "config.toml: line 1" in list(problems(host(rooted)))[1]


def test_a_configuration_that_nobody_can_change(rooted: Rooted, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flatcar's, below /usr."""
    target = rooted.put("/usr/share/containerd/config.toml", "version = 2\n")
    rooted.path(CONFIG).symlink_to(target)
    monkeypatch.setattr(survey, "_FIXED", 'printf "%s\\n" "$@"')
    (found,) = problems(host(rooted))
    assert found.startswith("/usr/share/containerd/config.toml must be changed, but its file system is read-only, or ")
    assert f"copy it to {CONFIG} and have containerd.service start containerd with `--config {CONFIG}`" in found
    monkeypatch.undo()
    assert not list(problems(host(rooted)))
    init(rooted)
    monkeypatch.setattr(survey, "_FIXED", 'printf "%s\\n" "$@"')
    assert not list(problems(host(rooted))), "it says all that is needed"


def test_the_script_that_finds_what_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    root = os.geteuid() == 0
    protect = "mount -t tmpfs -o ro,size=4k none ro" if root else "chmod 555 ro"
    (tmp_path / "ro").mkdir()
    script = f'{protect} || exit 77; sh -c "$0" fixed "$@"'
    argv = ["sh", "-c", script, survey._FIXED, "a.toml", "b/c.toml", "ro/a.toml", "ro/b/c.toml"]
    done = subprocess.run(
        ["unshare", "--mount", *argv] if root else argv, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if done.returncode in (1, 77) and root:
        pytest.skip("a file system cannot be mounted here")
    assert done.stdout.split() == ["ro/a.toml", "ro/b/c.toml"]


def test_a_file_that_is_not_there_needs_one_directory_that_can_be_written_to(tmp_path: Path) -> None:
    """As in /etc where / itself is read-only or immutable: Fedora CoreOS, RHEL in image mode."""
    root = os.geteuid() == 0
    (tmp_path / "ro" / "etc").mkdir(parents=True)
    protect = "mount --bind ro ro && mount -o remount,bind,ro ro && mount --bind etc ro/etc"
    (tmp_path / "etc").mkdir()
    script = f'{protect if root else "chmod 555 ro"} || exit 77; sh -c "$0" fixed "$@"'
    argv = ["sh", "-c", script, survey._FIXED, "ro/etc/containerd/config.toml", "ro/containerd/config.toml"]
    done = subprocess.run(
        ["unshare", "--mount", *argv] if root else argv, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (tmp_path / "ro").chmod(0o755)
    if done.returncode in (1, 77) and root:
        pytest.skip("a file system cannot be mounted here")
    assert done.stdout.split() == ["ro/containerd/config.toml"]


def test_a_healthy_installed_host_has_no_problems(rooted: Rooted) -> None:
    rooted.put(CONFIG, (GOLDEN / "debian-1.7" / "original.toml").read_bytes())
    init(rooted)
    assert not list(problems(host(rooted)))
    assert not list(notices(host(rooted), SETTINGS))


def test_no_containerd(rooted: Rooted) -> None:
    rooted.path("/usr/bin/containerd").unlink()
    rooted.unit(LoadState="not-found", ExecStart="")
    assert list(problems(host(rooted))) == [
        "containerd is not installed: install containerd or containerd.io, then run the command again"
    ]
    k3s = rooted.put("/usr/local/bin/k3s", "")
    k3s.chmod(0o755)
    assert "k3s or RKE2" in next(problems(host(rooted)))
    with pytest.raises(Refused, match="k3s"):
        init(rooted)


def test_an_old_containerd(rooted: Rooted) -> None:
    rooted.says_version("1.5.9")
    assert "1.6 or later is needed" in next(problems(host(rooted)))


def test_kill_mode(rooted: Rooted) -> None:
    rooted.unit(KillMode="control-group")
    assert "kills the containers on h1" in next(notices(host(rooted), SETTINGS))


def test_no_containers_are_killed_by_a_restart_that_nobody_was_told_of(rooted: Rooted) -> None:
    rooted.unit(KillMode="control-group")
    (problem,) = problems(host(rooted))
    assert "KillMode=control-group, so that the restart" in problem
    assert "`systemctl edit containerd.service`" in problem
    rooted.unit(KillMode="process")
    init(rooted)
    rooted.unit(KillMode="control-group")
    assert not list(problems(host(rooted))), "no restart is due"


def test_a_dry_run_changes_nothing(rooted: Rooted) -> None:
    rooted.put(CONFIG, "version = 2\n")
    before = rooted.tree()
    differences = [change.diff(host(rooted).as_read_only()) for change in steps(host(rooted), settings=SETTINGS)]
    assert any(difference and "config_path" in difference for difference in differences)
    assert rooted.tree() == before


def test_the_copies_are_made_once(rooted: Rooted) -> None:
    rooted.put(CONFIG, "version = 2\n# first\n")
    init(rooted)
    rooted.put(CONFIG, "version = 2\n# second\n")
    init(rooted)
    assert rooted.path(f"/etc/kubeadm-registry/backup/containerd/files{CONFIG}").read_text() == "version = 2\n# first\n"
    originals = json.loads(rooted.path("/etc/kubeadm-registry/backup/containerd/originals.json").read_text())
    assert originals["files"][CONFIG]["mode"] == "644"


def test_a_second_run_takes_few_round_trips(rooted: Rooted) -> None:
    rooted.put(CONFIG, "version = 2\n")
    init(rooted)
    rooted.calls = 0
    init(rooted)
    assert rooted.calls <= 12
