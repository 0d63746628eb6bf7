"""What a host says about its containerd: the files that containerd reads, and the command line that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeadm_registry.containerd import problems, survey
from kubeadm_registry.containerd.settings import Refused, Version
from tests.unit.containerd_host import Rooted, host
from tests.unit.test_containerd_steps import CONFIG, init, reset, without_ours

pytestmark = pytest.mark.slow

CONF_D = "/etc/containerd/conf.d"


@pytest.fixture
def rooted(tmp_path: Path) -> Rooted:
    return Rooted(tmp_path)


def files(rooted: Rooted) -> list[str]:
    """The files that make up the configuration."""
    return [file.path for file in survey.configuration(host(rooted), CONFIG, Version(1, 7)).files]


def test_a_pattern_matches_hidden_files_as_in_go_and_in_its_order(rooted: Rooted) -> None:
    rooted.put(CONFIG, 'version = 2\nimports = ["conf.d/*.toml", "*/x.toml"]\n')
    for name in ("b.toml", ".a.toml", ".toml", "-c.toml", "no.txt"):
        rooted.put(f"{CONF_D}/{name}", "")
    for name in ("a", "a-b", ".h"):
        rooted.put(f"/etc/containerd/{name}/x.toml", "")
    inside = [f"{CONF_D}/{name}" for name in ("-c.toml", ".a.toml", ".toml", "b.toml")]
    assert files(rooted) == [CONFIG, *inside, *(f"/etc/containerd/{name}/x.toml" for name in (".h", "a", "a-b"))]


def test_an_import_without_a_star_is_no_pattern(rooted: Rooted) -> None:
    rooted.put(CONFIG, 'version = 2\nimports = ["a[b]?.toml"]\n')
    rooted.put("/etc/containerd/a[b]?.toml", "")
    rooted.put("/etc/containerd/abc.toml", "")
    assert files(rooted) == [CONFIG, "/etc/containerd/a[b]?.toml"]


def test_a_group_may_have_a_blank_in_its_name(rooted: Rooted) -> None:
    rooted.put(CONFIG, "version = 2\n")
    rooted.put("/usr/bin/stat", "#!/bin/sh\necho '12 640 joe:domain users 1001:1002'\n", 0o755)
    (file,) = survey.configuration(host(rooted), CONFIG, Version(1, 7)).files
    assert (file.path, file.real) == (CONFIG, CONFIG)
    assert (file.state.content, file.state.mode, file.state.owner) == (b"version = 2\n", 0o640, "joe:1002")


def test_each_file_is_read_once(rooted: Rooted) -> None:
    rooted.put(CONFIG, f'version = 2\nimports = ["{CONFIG}", "b.toml", "b.toml"]\n')
    rooted.put("/etc/containerd/b.toml", 'imports = ["config.toml", "b.toml"]\n')
    assert files(rooted) == [CONFIG, "/etc/containerd/b.toml"]


@pytest.mark.parametrize("version", ["1.6.20", "1.7.24", "2.1.9", "2.4.2"])
@pytest.mark.parametrize(
    ("imports", "says"),
    [
        ('["/nowhere.toml"]', "imports /nowhere.toml, which does not exist"),
        ('["conf.d"]', "/etc/containerd/conf.d is not a regular file"),
        ('["/etc/containerd/conf.d/*"]', "/etc/containerd/conf.d/dangling is not a regular file"),
        ('"x"', "containerd rejects it: "),
    ],
)
def test_preflight_finds_what_keeps_containerd_from_starting(
    rooted: Rooted, version: str, imports: str, says: str
) -> None:
    """2.x's ``config dump`` says nothing of an import that is not there, and containerd does not start."""
    rooted.says_version(version)
    rooted.put(CONFIG, f"version = 2\nimports = {imports}\n")
    rooted.path(CONF_D).mkdir()
    rooted.path(f"{CONF_D}/dangling").symlink_to("nowhere")
    before = rooted.tree()
    (found,) = problems(host(rooted))
    assert says in found
    with pytest.raises(Refused) as caught:
        init(rooted)
    assert says in caught.value.message
    assert caught.value.hint
    assert rooted.tree() == before, "nothing is changed, not even hosts files"


def test_a_configuration_that_is_a_link_to_nowhere_is_not_replaced(rooted: Rooted) -> None:
    rooted.path(CONFIG).symlink_to("nowhere")
    assert "is not a regular file" in next(problems(host(rooted)))
    with pytest.raises(Refused, match="a dangling link"):
        init(rooted)
    assert rooted.path(CONFIG).is_symlink()


@pytest.mark.parametrize("name", [".new.aB3dE5gH7j-10-reg.toml", ".10-reg.toml.aB3dE5gH7j.kubeadm-registry"])
def test_what_a_killed_run_left_is_no_configuration_and_goes(rooted: Rooted, name: str) -> None:
    """It matches the pattern, and may end anywhere."""
    rooted.put(CONFIG, 'version = 2\nimports = ["conf.d/*"]\n')
    rooted.put(f"{CONF_D}/10-reg.toml", 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n')
    before = rooted.tree()
    left = rooted.put(f"{CONF_D}/{name}", 'version = 2\n[plugins."io.cont')
    assert not list(problems(host(rooted)))
    assert init(rooted)[0] == f"remove {CONF_D}/{name}"
    assert not left.exists()
    left.write_text("again [")
    reset(rooted)
    assert without_ours(rooted.tree()) == before


def test_a_linked_file_is_checked_where_containerd_reads_it(rooted: Rooted) -> None:
    """Imports are relative to the path by which containerd knows the file."""
    rooted.put("/etc/containerd/more.toml", "version = 2\n")
    target = rooted.put("/srv/config.toml", 'version = 2\nimports = ["more.toml"]\n')
    rooted.path(CONFIG).symlink_to(target)
    init(rooted)
    assert "config_path" in target.read_text()
    assert rooted.path(CONFIG).is_symlink()
    assert sorted(path.name for path in rooted.path("/etc/containerd").iterdir()) == [
        "certs.d", "config.toml", "more.toml",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("-config", "/srv/c.toml"),
        ("--config=/srv/c.toml",),
        ("-c=/srv/c.toml",),
        ("--c", "/srv/c.toml"),
        ("--root", "/x", "-config=/srv/c.toml", "--address", "/run/a.sock"),
    ],
)
def test_the_options_of_the_unit(rooted: Rooted, words: tuple[str, ...]) -> None:
    rooted.unit(ExecStart=f"{{ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd {' '.join(words)} ; x }}")
    shown = survey.ask(host(rooted))
    assert shown is not None
    assert shown.config == "/srv/c.toml"
    assert shown.socket == ("/run/a.sock" if "--address" in words else "/run/containerd/containerd.sock")


@pytest.mark.parametrize(
    ("unit", "running", "config"),
    [
        ("/usr/bin/containerd --config /a b/c.toml", ["/usr/bin/containerd", "--config", "/a b/c.toml"], "/a b/c.toml"),
        (
            '/usr/bin/containerd --config "/a b/c.toml"',
            ["/usr/bin/containerd", "--config", "/a b/c.toml"],
            "/a b/c.toml",
        ),
        ("/usr/bin/containerd $OPTIONS", ["/usr/bin/containerd", "-c", "/srv/c.toml"], "/srv/c.toml"),
        ("/usr/local/sbin/start", ["/usr/bin/containerd", "-c", "/srv/c.toml"], "/srv/c.toml"),
        # Edited and loaded since it started: what counts is the next start, which may be ours.
        ("/usr/bin/containerd -c /new.toml", ["/usr/bin/containerd", "-c", "/old.toml"], "/new.toml"),
        ("/usr/bin/containerd", ["/usr/bin/containerd", "-c", "/old.toml"], CONFIG),
        ("/usr/bin/containerd -c /srv/c.toml", [], "/srv/c.toml"),
    ],
)
def test_the_command_line_of_the_process_is_exact(rooted: Rooted, unit: str, running: list[str], config: str) -> None:
    """systemctl joins words by blanks and leaves variables, so the process's own command line says which is meant."""
    rooted.unit(ExecStart=f"{{ path=/usr/bin/containerd ; argv[]={unit} ; x }}", MainPID="42" if running else "0")
    rooted.put("/proc/42/cmdline", "".join(f"{word}\0" for word in running))
    shown = survey.ask(host(rooted))
    assert shown is not None
    assert shown.config == config


def test_a_unit_that_starts_containerd_by_another_program(rooted: Rooted) -> None:
    """As Flatcar's does, by ``env``: what that says of itself is no version of containerd."""
    rooted.put("/usr/bin/env", "#!/bin/sh\necho 'env (GNU coreutils) 9.5'\n", 0o755)
    line = "/usr/bin/env PATH=${TORCX_BINDIR}:${PATH} ${TORCX_BINDIR}/containerd"
    rooted.unit(ExecStart=f"{{ path={rooted.path('/usr/bin/env')} ; argv[]={line} ; x }}", MainPID="42")
    rooted.put("/proc/42/cmdline", "/usr/bin/containerd\0")
    rooted.path("/proc/42/exe").symlink_to(rooted.path("/usr/bin/containerd"))
    shown = survey.ask(host(rooted))
    assert shown is not None
    assert (shown.program, shown.version) == ("/usr/bin/containerd", Version(1, 7))
    assert not list(problems(host(rooted)))
    init(rooted)
    assert "config_path" in rooted.path(CONFIG).read_text()


@pytest.mark.parametrize(
    ("unit", "name"), [("k3s", "k3s"), ("k3s-agent", "k3s"), ("rke2-server", "rke2"), ("rke2-agent", "rke2")]
)
def test_a_containerd_that_kubernetes_does_not_use(rooted: Rooted, unit: str, name: str) -> None:
    """Such as Docker's on a node of k3s: mirrors in it would have no effect."""
    rooted.put("/stub/active", f"{unit}.service\n")
    (found,) = problems(host(rooted))
    assert found.startswith(f"this node runs {name}, whose pods use a containerd of its own and not containerd.service")
    assert f"mirrors print --for {name}`" in found
    rooted.put("/stub/active", "docker.service\nk3s-other.service\n")
    assert not list(problems(host(rooted)))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("crio", "CRI-O, but only containerd is supported"),
        ("dockerd", "containerd is not installed, dockerd is"),
    ],
)
def test_another_runtime(rooted: Rooted, program: str, says: str) -> None:
    rooted.path("/usr/bin/containerd").unlink()
    rooted.unit(LoadState="not-found", ExecStart="")
    rooted.put(f"/usr/bin/{program}", "", 0o755)
    (found,) = problems(host(rooted))
    assert says in found
    assert "needs containerd or CRI-O" not in found
