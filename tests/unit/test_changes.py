"""Changes: each knows what differs, makes it so, and is quiet afterwards."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from kubeadm_registry.engine import changes
from kubeadm_registry.engine.changes import (
    Absent,
    Change,
    Directory,
    File,
    NoService,
    Running,
    Wait,
    unified,
    unit_path,
    unit_state,
    wait,
)
from kubeadm_registry.engine.users import NoUser, User, users_ahead
from kubeadm_registry.errors import CommandFailed, CommandTimeout, Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host
from tests.unit.fakes import Dir, FakeTransport, UnknownCommand
from tests.unit.here import OWNER, Here, here, stub

UNIT = "zot.service"
CONFIG = File("/etc/zot.json", b"{}\n")
RECORD = f"{changes.RECORD_START} %n {CONFIG.path} {unit_path(UNIT)}"
UNIT_FILE = File(
    unit_path(UNIT),
    f"[Service]\nExecStartPre=+{RECORD}\nExecStart=/x\nExecReload=+{RECORD}\n[Install]\nWantedBy=x\n".encode(),
)


def converge(change: Change, host: Host) -> str:
    """Apply a change that is due; it must be quiet afterwards, and not have acted before."""
    transport = host.transport
    assert isinstance(transport, FakeTransport)
    before = list(transport.acts)
    difference = change.diff(host.as_read_only())
    assert difference is not None
    assert transport.acts == before, "diff has acted"
    change.apply(host)
    assert change.diff(host) is None
    return difference


# ---- File -----------------------------------------------------------------------------------------------------------


def test_a_new_file_is_shown_whole(server: FakeTransport) -> None:
    change = File("/etc/a", b"one\ntwo\n", mode=0o640)
    assert change.title == "write /etc/a"
    assert converge(change, server.host()).splitlines() == [
        "--- /dev/null",
        "+++ /etc/a",
        "@@ -0,0 +1,2 @@",
        "+one",
        "+two",
    ]
    assert (server.content("/etc/a"), server.files()["/etc/a"].mode) == (b"one\ntwo\n", 0o640)


def test_a_changed_file_is_shown_as_a_diff(server: FakeTransport) -> None:
    server.put("/etc/a", "one\ntwo\n")
    assert "-two\n+2" in converge(File("/etc/a", b"one\n2\n"), server.host())


def test_mode_and_owner_alone_are_mended(server: FakeTransport) -> None:
    server.put("/etc/a", "x", 0o666, "root:root")
    server.users["u"] = {"u"}
    server.groups.add("u")
    assert converge(File("/etc/a", b"x", 0o640, "root:u"), server.host()) == (
        "/etc/a: mode 666 -> 640, owner root:root -> root:u"
    )


@pytest.mark.parametrize("old", [None, b"old secret"])
def test_the_content_of_a_secret_file_is_never_shown(server: FakeTransport, old: bytes | None) -> None:
    if old is not None:
        server.put("/etc/a", old)
    change = File("/etc/a", b"new secret", mode=0o600, secret=True)
    assert converge(change, server.host()) == f"/etc/a: {'new' if old is None else 'changed'} secret, 10 bytes"


def test_a_refused_file_stays_as_it_was(server: FakeTransport) -> None:
    server.put("/etc/a", "good")
    server.answer("check", with_=lambda _, content: 0 if content == b"good" else 1)
    with pytest.raises(CommandFailed):
        File("/etc/a", b"bad", validate=("check", "{path}")).apply(server.host())
    assert server.content("/etc/a") == b"good"


SECRET_KEYS = ("secret", "secretkey")
FORMS = {
    "YAML": ('http:\n  secret: "{}"\n  other: {}\n', "http:\n  secret: <secret>\n  other: {}\n"),
    "JSON": ('{{\n "secretkey": "{}",\n "other": "{}"\n}}\n', '{{\n "secretkey": <secret>\n "other": "{}"\n}}\n'),
    "INI": ("SecretKey={}\nother={}\n", "SecretKey= <secret>\nother={}\n"),
}


@pytest.mark.parametrize(("form", "_shown"), FORMS.values(), ids=FORMS)
def test_values_of_secret_keys_are_shown_neither_as_they_were_nor_as_they_are(
    server: FakeTransport, form: str, _shown: str
) -> None:
    """The earlier one may be of another cluster, so nobody here could mask it by its value."""
    server.put("/etc/a", form.format("old-secret", "one"))
    shown = converge(File("/etc/a", form.format("new-secret", "two").encode(), secret_keys=SECRET_KEYS), server.host())
    assert "old-secret" not in shown
    assert "new-secret" not in shown
    assert "one" in shown
    assert "two" in shown


def test_a_secret_value_that_alone_differs_is_told(server: FakeTransport) -> None:
    server.put("/etc/a", "secret: old\nother: 1\n")
    change = File("/etc/a", b"secret: new\nother: 1\n", secret_keys=SECRET_KEYS)
    assert converge(change, server.host()) == "secret values of /etc/a differ"


@pytest.mark.parametrize(("form", "shown"), FORMS.values(), ids=FORMS)
def test_only_values_are_masked(form: str, shown: str) -> None:
    content = form.format("x", "y").encode()
    assert changes._masked(content, SECRET_KEYS) == shown.format("y").encode()
    assert changes._masked(content, ()) == content
    assert changes._masked(None, SECRET_KEYS) is None


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (b"a\r\n", b"a\n", "line ends of p differ"),
        (b"a", b"a\n", "line ends of p differ"),
        (b"\xff", b"a", "binary content of p differs"),
        (b"a", None, "--- p\n+++ p\n@@ -1 +0,0 @@\n-a"),
        (None, b"", "line ends of p differ"),
    ],
)
def test_every_difference_of_content_is_told(old: bytes | None, new: bytes | None, shown: str) -> None:
    assert unified("p", old, new) == shown


# ---- Directory, Absent ----------------------------------------------------------------------------------------------


def test_a_directory_is_made_with_those_above_it(server: FakeTransport) -> None:
    assert converge(Directory("/opt/a/b", 0o750), server.host()) == "/opt/a/b: new directory, mode 750, owner root:root"
    assert server.tree["/opt/a"] == Dir()


def test_a_directory_of_the_wrong_mode_is_mended(server: FakeTransport) -> None:
    server.tree["/opt/a"] = Dir(0o777)
    assert converge(Directory("/opt/a"), server.host()) == "/opt/a: mode 777 -> 755"


def test_a_file_where_a_directory_should_be_is_an_error_and_stays(server: FakeTransport) -> None:
    server.put("/opt/a", "x")
    with pytest.raises(Error, match="/opt/a is a regular file, not a directory") as caught:
        Directory("/opt/a").diff(server.host())
    assert caught.value.hint == "move it elsewhere"
    assert server.content("/opt/a") == b"x"


def test_data_that_outlived_its_user_gets_its_new_one(server: FakeTransport) -> None:
    host = server.host()
    User("u").apply(host)
    Directory("/opt/data", owner="u:u").apply(host)
    server.put("/opt/data/blob", "x", 0o600, "u:u")
    NoUser("u").apply(host)
    User("u").apply(host)
    converge(Directory("/opt/data", owner="u:u", recursive=True), host)
    assert server.files()["/opt/data/blob"].owner == "u:u"


def test_absent(server: FakeTransport) -> None:
    server.put("/opt/a/b", "x")
    assert converge(Absent("/opt/a"), server.host()) == "/opt/a: removed"
    assert not [path for path in server.tree if path.startswith("/opt/")]
    assert "/opt" in server.tree


def test_a_folder_that_holds_something_stays_if_only_an_empty_one_may_go(server: FakeTransport) -> None:
    server.put("/opt/a/b", "x")
    change = Absent("/opt/a", only_if_empty=True)
    assert change.diff(server.host()) is None
    del server.tree["/opt/a/b"]
    converge(change, server.host())


@pytest.mark.parametrize(
    ("make", "only_if_empty", "there"),
    [
        (lambda path: None, "", False),
        (lambda path: path.write_text("x"), "", True),
        (lambda path: path.symlink_to("dangling"), "", True),
        (lambda path: path.mkdir(), "yes", True),
        (lambda path: (path.mkdir(), (path / ".hidden").touch()), "yes", False),
        (lambda path: (path.mkdir(), (path / "x").touch()), "", True),
    ],
)
def test_the_script_that_looks_whether_something_is_there(
    tmp_path: Path, make: Callable[[Path], object], only_if_empty: str, there: bool
) -> None:
    make(tmp_path / "it")
    assert here().query("sh", "-c", changes._THERE, "absent", str(tmp_path / "it"), only_if_empty).ok is there


def test_a_folder_on_which_a_disk_is_mounted_is_not_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    stub(tmp_path / "bin", "mountpoint", f'[ "$*" = "-q -- {tmp_path}/it" ]')
    ask = ("sh", "-c", changes._THERE, "absent", str(tmp_path / "it"))
    assert not here(tmp_path / "bin").query(*ask, "yes").ok
    assert here(tmp_path / "bin").query(*ask, "").ok, "only where it is asked for"


# ---- users ----------------------------------------------------------------------------------------------------------


def test_a_user_without_home_shell_or_password(server: FakeTransport) -> None:
    server.groups.add("g")
    assert converge(User("u", groups=("g",)), server.host()) == "user u: new system user"
    assert server.users["u"] == {"u", "g"}
    [added] = [command.argv for command in server.log if command.argv[0] == "useradd"]
    assert {"--system", "--no-create-home", "/usr/sbin/nologin"} <= set(added)


def test_a_user_that_is_there_joins_what_it_lacks(server: FakeTransport) -> None:
    User("u").apply(server.host())
    server.groups |= {"g", "h"}
    server.users["u"].add("h")
    assert converge(User("u", groups=("g", "h")), server.host()) == "user u: joins g"


def test_no_user(server: FakeTransport) -> None:
    User("u").apply(server.host())
    assert converge(NoUser("u"), server.host()) == "user u: removed"
    assert "u" not in server.groups


def test_a_group_with_other_members_goes_too(server: FakeTransport) -> None:
    User("u").apply(server.host())
    User("other", groups=("u",)).apply(server.host())
    converge(NoUser("u"), server.host())
    assert server.groups == {"root", "other"}


def test_a_group_that_a_killed_run_left_is_no_hindrance_and_goes(server: FakeTransport) -> None:
    """``userdel`` leaves a group with other members to ``groupdel``; a host may do so with all (USERGROUPS_ENAB)."""
    server.groups.add("u")
    User("u").apply(server.host())
    assert server.users["u"] == {"u"}
    del server.users["u"]
    assert converge(NoUser("u"), server.host()) == "group u: removed"
    assert server.groups == {"root"}


# ---- waiting --------------------------------------------------------------------------------------------------------


def test_a_wait_ends_when_the_state_has_come(server: FakeTransport) -> None:
    answers = iter(["not yet", "nearly"])
    wait(server.host(), lambda _: next(answers, None), what="it comes", timeout=5, interval=0.001)
    assert next(answers, None) is None


def test_a_wait_ends_at_its_deadline_with_what_was_missing(server: FakeTransport) -> None:
    with pytest.raises(CommandTimeout) as caught:
        wait(server.host(), lambda _: "2 of 3 are up", what="all are up", timeout=0.05, interval=0.01)
    assert str(caught.value) == "cp-1: timed out after 0 s waiting until all are up: 2 of 3 are up"


def test_a_wait_is_a_change_too(server: FakeTransport) -> None:
    state = ["it sleeps"]
    change = Wait("it is awake", lambda _: state[0] if state else None, timeout=0)
    assert (change.title, change.diff(server.host())) == ("wait until it is awake", "it sleeps")
    with pytest.raises(CommandTimeout):
        change.apply(server.host())
    state.clear()
    change.apply(server.host())
    assert change.diff(server.host()) is None


# ---- services -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(server: FakeTransport) -> FakeTransport:
    """A host with the helper script and the unit's files, on which the unit never ran."""
    server.put(changes.RECORD_START, "#!/bin/sh\n", 0o755)
    for file in (CONFIG, UNIT_FILE):
        server.put(file.path, file.content)
    return server


SERVICE = Running(UNIT, (CONFIG, UNIT_FILE))


def test_a_service_is_enabled_and_started(ready: FakeTransport) -> None:
    assert converge(SERVICE, ready.host()) == f"{UNIT}: is enabled, is started (it is inactive)"
    assert ready.acts == [f"enable {UNIT}", f"start {UNIT}"]


def test_a_service_that_runs_with_its_files_is_left_alone(ready: FakeTransport) -> None:
    SERVICE.apply(ready.host())
    SERVICE.apply(ready.host())
    assert ready.unit(UNIT).starts == 1


def rewritten(ready: FakeTransport) -> File:
    """Start the service, then change its configuration on disk: as a run that died before the restart leaves it."""
    SERVICE.apply(ready.host())
    new = File(CONFIG.path, b'{"new": 1}\n')
    new.apply(ready.host())
    return new


def test_a_service_that_runs_with_an_earlier_file_is_restarted(ready: FakeTransport) -> None:
    new = rewritten(ready)
    change = Running(UNIT, (new, UNIT_FILE))
    assert converge(change, ready.host()) == f"{UNIT}: restarts, because it runs with earlier versions of {CONFIG.path}"
    assert (ready.unit(UNIT).starts, ready.unit(UNIT).reloads) == (2, 0)


def test_a_file_that_can_be_reloaded_costs_no_restart(ready: FakeTransport) -> None:
    new = rewritten(ready)
    change = Running(UNIT, (new, UNIT_FILE), reloads=(CONFIG.path,))
    assert "reloads" in converge(change, ready.host())
    assert (ready.unit(UNIT).starts, ready.unit(UNIT).reloads) == (1, 1)


def test_lines_that_need_no_restart_cost_none(ready: FakeTransport) -> None:
    def written(*lines: str) -> Running:
        file = File(CONFIG.path, "".join(lines).encode())
        file.apply(ready.host())
        return Running(UNIT, (file, UNIT_FILE))

    written("a = [\n", '"x", # needs no restart\n', "]\n").apply(ready.host())
    other = written("a = [\n", '"y", # needs no restart\n', '"z", # needs no restart\n', "]\n")
    assert other.diff(ready.host()) is None
    assert "restarts" in (
        written("a = [\n", '"y", # needs no restart, says somebody\n', "]\n").diff(ready.host()) or ""
    )
    assert "restarts" in (written("a = [\n", "]").diff(ready.host()) or "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a",
        b"a # needs no restart",
        b"a # needs no restart\nb\n",
        b"a\n\nb # needs no restart\n\n",
        b"a\rb # needs no restart\nc",
        b"a # needs no restart\r\nb # needs no restarts\n",
        b"\x0ba # needs no restart\n\x0bb\n",
    ],
)
def test_the_digest_is_the_one_that_record_start_notes(content: bytes) -> None:
    """Of its ``sed``, which ends lines at ``\\n`` alone."""
    sed = ["sed", f"/ {changes.NO_RESTART}$/d"]
    counted = subprocess.run(sed, input=content, stdout=subprocess.PIPE, env={"LC_ALL": "C"}, check=True).stdout
    assert File("/x", content).digest == hashlib.sha256(counted).hexdigest()


def test_a_changed_unit_file_restarts_though_the_configuration_could_be_reloaded(ready: FakeTransport) -> None:
    new = rewritten(ready)
    unit = File(UNIT_FILE.path, UNIT_FILE.content.replace(b"/x", b"/y"))
    unit.apply(ready.host())
    assert "restarts" in converge(Running(UNIT, (new, unit), reloads=(CONFIG.path,)), ready.host())
    assert ready.unit(UNIT).loaded == unit.content, "systemd has read the new unit file"


def test_a_service_that_says_late_that_it_reloads_runs(ready: FakeTransport) -> None:
    """systemctl has ended by then, so the run looks at it again while it does."""
    new = rewritten(ready)
    Running(UNIT, (new, UNIT_FILE), reloads=(CONFIG.path,)).apply(ready.host())
    ready.unit(UNIT).active = "reloading"
    assert Running(UNIT, (new, UNIT_FILE), reloads=(CONFIG.path,)).diff(ready.host()) is None


def test_a_reboot_needs_no_restart_by_us(ready: FakeTransport) -> None:
    SERVICE.apply(ready.host())
    ready.reboot()
    assert SERVICE.diff(ready.host()) is None


def test_a_reboot_with_files_that_changed_meanwhile_needs_none_either(ready: FakeTransport) -> None:
    new = rewritten(ready)
    ready.reboot()
    assert Running(UNIT, (new, UNIT_FILE)).diff(ready.host()) is None


def test_a_service_that_somebody_stopped_is_started(ready: FakeTransport) -> None:
    SERVICE.apply(ready.host())
    ready.unit(UNIT).active = "failed"
    assert converge(SERVICE, ready.host()) == f"{UNIT}: is started (it is failed)"


def test_a_service_that_does_not_start_is_an_error_with_its_last_words(ready: FakeTransport) -> None:
    ready.broken[UNIT] = "line 1\nno such key: foo"
    with pytest.raises(Error) as caught:
        SERVICE.apply(ready.host())
    error = caught.value
    assert str(error) == f"cp-1: systemctl start {UNIT} failed: line 1 | no such key: foo"
    assert (error.hint, error.code) == (f"see: journalctl -u {UNIT}", "ServiceFailed")
    ready.broken.clear()
    converge(SERVICE, ready.host())


def test_a_restart_waits_for_the_others_and_a_start_does_not(ready: FakeTransport) -> None:
    asked: list[str] = []

    def gate(host: Host) -> str | None:
        asked.append(host.name)
        return "another server is down"

    Running(UNIT, (CONFIG, UNIT_FILE), gate=gate).apply(ready.host())
    assert not asked, "a service that does not run takes nothing away when it starts"
    new = File(CONFIG.path, b"2")
    new.apply(ready.host())
    with pytest.raises(CommandTimeout, match=r"zot\.service may restart: another server is down"):
        Running(UNIT, (new, UNIT_FILE), gate=gate, gate_timeout=0).apply(ready.host())
    assert ready.unit(UNIT).starts == 1


def test_a_reload_needs_not_wait_for_the_others(ready: FakeTransport) -> None:
    new = rewritten(ready)
    change = Running(UNIT, (new, UNIT_FILE), reloads=(CONFIG.path,), gate=lambda _: "another is down", gate_timeout=0)
    converge(change, ready.host())


def test_what_systemd_says_of_a_unit_that_it_does_not_know(server: FakeTransport) -> None:
    state = unit_state(server.host(), "no.service")
    assert (state.active, state.enabled, state.started) == (False, False, {})
    assert state.properties["LoadState"] == "not-found"


def test_no_service(ready: FakeTransport) -> None:
    change = NoService(UNIT)
    SERVICE.apply(ready.host())
    assert converge(change, ready.host()) == f"{UNIT}: stopped, disabled and removed"
    assert UNIT_FILE.path not in ready.tree
    assert f"{changes.STARTED}/{UNIT}" not in ready.tree
    assert (ready.unit(UNIT).active, ready.unit(UNIT).enabled) == ("inactive", False)


def test_no_service_removes_a_file_of_a_unit_that_never_ran(ready: FakeTransport) -> None:
    converge(NoService(UNIT), ready.host())


def test_two_instances_of_a_template_are_both_removed(ready: FakeTransport) -> None:
    first, second = "p@1.service", "p@2.service"
    template = File(unit_path(first), UNIT_FILE.content)
    template.apply(ready.host())
    for unit in (first, second):
        Running(unit, ()).apply(ready.host())
    for unit in (first, second):
        converge(NoService(unit), ready.host())
    assert not any(unit.active == "active" for unit in ready.units.values())


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        ("a.service", "/etc/systemd/system/a.service"),
        ("a@1.service", "/etc/systemd/system/a@.service"),
        ("a-b.slice", "/etc/systemd/system/a-b.slice"),
    ],
)
def test_where_a_unit_file_lies(unit: str, path: str) -> None:
    assert unit_path(unit) == path


def test_the_fake_refuses_what_it_does_not_know(server: FakeTransport) -> None:
    """All tests here would prove nothing if it said yes to anything."""
    for argv in (("reboot",), ("sh", "-c", "true"), ("systemctl", "kill", "--", UNIT), ("rm", "-rf", "/")):
        with pytest.raises(UnknownCommand):
            server.host().query(*argv)


# ---- asked for many at once, by scripts that only a real host can judge ---------------------------------------------


def test_directories_asked_for_at_once_are_answered_as_each_would_be(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o750)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    paths = [str(tmp_path / name) for name in ("folder", "none", "file", "link")]
    for answer in changes.directories_ahead(here(), paths):
        asked = here().query(*answer.argv)
        assert (answer.argv, answer.ok, answer.text) == (asked.argv, asked.ok, asked.text)


def test_users_asked_for_at_once_are_answered_as_each_would_be() -> None:
    names = ["root", "nobody-of-this-name", "daemon"]
    ahead = users_ahead(here(), names)
    assert [answer.ok for answer in ahead] == [True, False, True]
    for answer in ahead:
        asked = here().query(*answer.argv)
        assert (answer.argv, answer.code, answer.text) == (asked.argv, asked.code, asked.text)


SHOW = """
first=yes
for unit; do
  case $unit in -*|show) continue ;; esac
  [ "$first" ] || echo
  first=
  printf 'LoadState=loaded\\nActiveState=%s\\n' "${unit%%.*}"
done
"""


def test_units_asked_for_at_once_are_answered_as_each_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, programs = tmp_path / "started", tmp_path / "programs"
    records.mkdir()
    programs.mkdir()
    (records / "a.service").write_text("1234  /etc/one\n5678  /etc/two\n")
    (records / "c.service").write_text("9abc  /etc/three\n")
    stub(programs, "systemctl", SHOW)
    monkeypatch.setattr(changes, "STARTED", str(records))
    host, units = Host("here", "10.0.0.11", Here(programs)), ["a.service", "b@1.service", "c.service"]
    ahead = changes.units_ahead(host, units)
    assert len(ahead) == 3
    for unit, answer in zip(units, ahead, strict=True):
        asked = host.query(*answer.argv)
        assert answer.argv == asked.argv
        host_that_knows = Host("here", "10.0.0.11", Known({answer.argv: answer}))
        assert changes.unit_state(host_that_knows, unit) == changes.unit_state(host, unit)
    assert changes.unit_state(host, "a.service").started == {"/etc/one": "1234", "/etc/two": "5678"}


class Known(Here):
    """A host that says what is known."""

    def __init__(self, answers: dict[tuple[str, ...], Result]) -> None:
        self._answers = answers

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        return self._answers[tuple(argv)]


def test_a_directory_is_made_and_mended(tmp_path: Path) -> None:
    there = tmp_path / "one" / "two"
    for mode in (0o700, 0o755):
        step = changes.Directory(str(there), mode=mode, owner=OWNER)
        assert step.diff(here()) is not None
        step.apply(here())
        assert step.diff(here()) is None
    assert tmp_path.joinpath("one").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("between", ["", "chown", "chmod"])
def test_a_link_in_place_of_a_directory_gives_nothing_else_away(tmp_path: Path, between: str) -> None:
    """What lies in a directory of a service may become a link after it was looked at."""
    victim, there = tmp_path / "victim", tmp_path / "data" / "meta"
    victim.mkdir(mode=0o755)
    there.mkdir(parents=True, mode=0o755)
    swap = f"[ -L {there} ] || {{ mv {there} {there}.old; ln -s {victim} {there}; }}"
    stub(tmp_path / "bin", between or "dirname", f'{swap}; exec {shutil.which(between or "dirname")} "$@"')
    with suppress(CommandFailed):
        changes.Directory(str(there), mode=0o700, owner=OWNER).apply(here(tmp_path / "bin"))
    assert victim.stat().st_mode & 0o777 == 0o755


def test_a_link_that_was_put_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    (tmp_path / "meta").symlink_to("victim")
    with pytest.raises(CommandFailed, match="is a symbolic link"):
        changes.Directory(f"{tmp_path}/meta", mode=0o700, owner=OWNER).apply(here())
    assert (tmp_path / "victim").stat().st_mode & 0o777 == 0o755
