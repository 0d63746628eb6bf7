"""Wanted states of one host: each reports what differs (``diff``) and establishes the state (``apply``)."""

from __future__ import annotations

import difflib
import hashlib
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from kubeadm_registry import paths
from kubeadm_registry.errors import CommandFailed, CommandTimeout, Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import Host

#: Where a unit's ``record-start`` notes the digests of the files that it was started with; empty after a boot.
STARTED = f"{paths.RUN}/started"
#: Called by each of our units before it starts or reloads: ``record-start UNIT FILE...``
RECORD_START = f"{paths.LIBEXEC}/record-start"
#: Ends a line whose changes need no restart of the units that read the file: record-start does not count the line.
NO_RESTART = "# needs no restart"
_UNCOUNTED = tuple(f" {NO_RESTART}{end}".encode() for end in ("", "\n"))


class Change(Protocol):
    """One wanted state of one host."""

    @property
    def title(self) -> str:
        """What apply does, as an imperative: ``write /etc/zot/config.json``."""

    def diff(self, host: Host) -> str | None:
        """What differs; None if nothing does. Only reads; files named by an attribute ``reads`` may be read ahead."""

    def apply(self, host: Host) -> None:
        """Establish the state; afterwards ``diff`` is None."""


Steps = Iterator[Change]


def unified(path: str, old: bytes | None, new: bytes | None) -> str:
    """A unified diff of a file's content; None stands for a file that is not there."""
    try:
        before = [] if old is None else old.decode().splitlines()
        after = [] if new is None else new.decode().splitlines()
    except UnicodeDecodeError:
        return f"binary content of {path} differs"
    lines = difflib.unified_diff(before, after, "/dev/null" if old is None else path, path, lineterm="", n=2)
    return "\n".join(lines) or f"line ends of {path} differ"


def _masked(content: bytes | None, keys: Sequence[str]) -> bytes | None:
    """*content* with the values of *keys* (``key: value``, ``"key": value``, ``key = value``) made unreadable."""
    if content is None or not keys:
        return content
    names = "|".join(map(re.escape, keys))
    return re.sub(rf'(?im)^(\s*"?(?:{names})"?\s*[:=]).*$'.encode(), rb"\1 <secret>", content)


def _attributes(path: str, mode: int, owner: str, is_mode: int, is_owner: str) -> str | None:
    differences = []
    if is_mode != mode:
        differences.append(f"mode {is_mode:o} -> {mode:o}")
    if is_owner != owner:
        differences.append(f"owner {is_owner} -> {owner}")
    return f"{path}: {', '.join(differences)}" if differences else None


@lru_cache(maxsize=256)  # each unit that reads a file asks, on each node; the agent's archive is one of them
def _started(content: bytes) -> str:
    lines = io.BytesIO(content) if _UNCOUNTED[0] in content else [content]
    return hashlib.sha256(b"".join(line for line in lines if not line.endswith(_UNCOUNTED))).hexdigest()


@dataclass(frozen=True, slots=True)
class File:
    """A file with exactly this content, mode and owner.

    *validate* is a command that must accept the new file (``{path}`` stands for its name) before it replaces the old.
    The content of a *secret* file is never shown, nor are the values of *secret_keys* in others: the old values may be
    those of an earlier cluster, so they cannot be redacted by comparison.
    """

    path: str
    content: bytes
    mode: int = 0o644
    owner: str = "root:root"
    validate: Sequence[str] = ()
    secret: bool = False
    secret_keys: Sequence[str] = ()

    @property
    def title(self) -> str:
        """What apply does."""
        return f"write {self.path}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The files that ``diff`` reads."""
        return (self.path,)

    @property
    def digest(self) -> str:
        """What record-start notes of it: SHA-256 of the content without lines that need no restart, hex."""
        return _started(self.content)

    def diff(self, host: Host) -> str | None:
        """A unified diff, or what differs in mode and owner."""
        state = host.state(self.path)
        if state is None or state.content != self.content:
            old = None if state is None else state.content
            if self.secret:
                return f"{self.path}: {'new' if old is None else 'changed'} secret, {len(self.content)} bytes"
            before, after = _masked(old, self.secret_keys), _masked(self.content, self.secret_keys)
            return f"secret values of {self.path} differ" if before == after else unified(self.path, before, after)
        return _attributes(self.path, self.mode, self.owner, state.mode, state.owner)

    def apply(self, host: Host) -> None:
        """Write the file whole, validated before it replaces the old one."""
        host.write(self.path, self.content, mode=self.mode, owner=self.owner, validate=self.validate)


def secret_of(user: str, path: str, content: bytes) -> File:
    """A file that only *user* may read, and whose content is never shown."""
    return File(path, content, mode=0o400, owner=f"{user}:{user}", secret=True)


_STAT = "%F|%a|%U:%G"


def _stat(path: str) -> tuple[str, ...]:
    return ("stat", "-c", _STAT, "--", path)


def directories_ahead(host: Host, paths: Sequence[str]) -> list[Result]:
    """The commands that Directory will run for each of *paths*, with their results, read by one command."""
    lines = host.query("stat", "-c", f"%n|{_STAT}", "--", *paths).stdout.splitlines()
    found = {name.decode(): rest for name, _, rest in (line.partition(b"|") for line in lines)}
    return [Result(_stat(path), 0 if path in found else 1, found.get(path, b"")) for path in paths]


#: Creates the directory ``$1``, unless it exists, and sets its mode ``$2`` and owner ``$3``. The parent's owner may
#: replace it by a link at any moment, so mode and owner are set on the directory that the shell has changed to.
_MAKE = """
set -e
[ -d "$1" ] || install -d -m 700 -- "$1"
above=$(cd -P -- "$(dirname -- "$1")" && pwd)
cd -P -- "$1"
[ "$(pwd)" = "${above%/}/${1##*/}" ] || { echo "$1 is a symbolic link" >&2; exit 1; }
chown -- "$3" .
chmod -- "$2" .
"""


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory with this mode and owner.

    With *recursive*, a wrong owner is also corrected in all that is below: data that outlived its user. With *as_is*,
    an existing directory keeps its mode and owner, and may be a link.
    """

    path: str
    mode: int = 0o755
    owner: str = "root:root"
    recursive: bool = False
    as_is: bool = False

    @property
    def title(self) -> str:
        """What apply does."""
        return f"make directory {self.path}"

    def diff(self, host: Host) -> str | None:
        """What differs, or None."""
        if self.as_is and host.query("test", "-d", self.path).ok:
            return None
        result = host.query(*_stat(self.path))
        if not result.ok:
            return f"{self.path}: new directory, mode {self.mode:o}, owner {self.owner}"
        kind, mode, owner = result.text.split("|")
        if kind != "directory":
            raise Error(f"{self.path} is a {kind}, not a directory", hint="move it elsewhere", host=host.name)
        return _attributes(self.path, self.mode, self.owner, int(mode, 8), owner)

    def apply(self, host: Host) -> None:
        """Create the directory, or correct its mode and owner."""
        if self.recursive and host.query("test", "-d", self.path).ok:
            # chown changes a directory after its content, so an interrupted one leaves the top wrong and is repeated.
            host.run("chown", "-R", "-P", "--", self.owner, self.path, timeout=3600)
        host.run("sh", "-c", _MAKE, "make", self.path, f"{self.mode:o}", self.owner)


#: Whether something is at ``$1``; with a second argument, whether it is an empty directory that can be removed.
_THERE = """
{ [ -e "$1" ] || [ -L "$1" ]; } || exit 1
[ -z "$2" ] || { [ -z "$(ls -A -- "$1")" ] && ! mountpoint -q -- "$1"; }
"""


@dataclass(frozen=True, slots=True)
class Absent:
    """No file, link or directory at *path*. With *only_if_empty*, a directory that is not empty or is a mount point
    stays.
    """

    path: str
    only_if_empty: bool = False

    @property
    def title(self) -> str:
        """What apply does."""
        return f"remove {self.path}"

    def diff(self, host: Host) -> str | None:
        """That it exists, or None."""
        there = host.query("sh", "-c", _THERE, "absent", self.path, "yes" if self.only_if_empty else "").ok
        return f"{self.path}: removed" if there else None

    def apply(self, host: Host) -> None:
        """Remove it and all below it, never crossing into another file system."""
        if self.only_if_empty:
            host.run("rmdir", "--", self.path)
        else:
            host.run("rm", "-rf", "--one-file-system", "--", self.path)


Condition = Callable[[Host], str | None]


def wait(host: Host, condition: Condition, *, what: str, timeout: float, interval: float = 0.2) -> None:
    """Ask *condition* until it says None; raises CommandTimeout after *timeout* seconds with its last answer."""
    end = time.monotonic() + timeout
    while (answer := condition(host)) is not None:
        if time.monotonic() >= end:
            raise CommandTimeout(f"timed out after {timeout:.0f} s waiting until {what}: {answer}", host=host.name)
        time.sleep(interval)


@dataclass(frozen=True, slots=True)
class Wait:
    """A state that is reached without a change: ``diff`` is what is still missing, ``apply`` waits for it."""

    what: str
    condition: Condition
    timeout: float = 60

    @property
    def title(self) -> str:
        """What apply does."""
        return f"wait until {self.what}"

    def diff(self, host: Host) -> str | None:
        """What is still missing, or None."""
        return self.condition(host)

    def apply(self, host: Host) -> None:
        """Wait until nothing is missing. Raises CommandTimeout."""
        wait(host, self.condition, what=self.what, timeout=self.timeout)


#: One round trip: the unit's properties, then the digests that it was started with.
_PROPERTIES = "--property=LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload"
_UNIT = f"""
systemctl show {_PROPERTIES} -- "$1"
echo
cat -- "$2" 2>/dev/null || :
"""
#: The same of many units, with a line ``= UNIT`` before each record. The shell reads them itself: a process for each
#: would be most of the work.
_UNITS = f"""
records=$1; shift
systemctl show {_PROPERTIES} -- "$@"
for unit; do
  echo "= $unit"
  [ ! -r "$records/$unit" ] || while IFS= read -r line; do echo "$line"; done <"$records/$unit"
done
"""


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a unit, and which files it was started with: path -> SHA-256, hex."""

    properties: dict[str, str]
    started: dict[str, str]

    @property
    def active(self) -> bool:
        """Whether the unit runs (or, for a oneshot unit, has run), also while it reloads: HAProxy reports the end of a
        reload only after ``systemctl reload`` has returned."""
        return self.properties.get("ActiveState") in ("active", "reloading")

    @property
    def enabled(self) -> bool:
        """Whether the unit starts at boot."""
        return self.properties.get("UnitFileState") == "enabled"


def _asking_for(unit: str) -> tuple[str, ...]:
    return ("sh", "-c", _UNIT, "unit", unit, f"{STARTED}/{unit}")


def units_ahead(host: Host, units: Sequence[str]) -> list[Result]:
    """The commands that ``unit_state`` will run for *units*, with their results, read by one; empty if not all are."""
    text = host.query("sh", "-c", _UNITS, "units", STARTED, *units).stdout
    shown, *records = re.split(rb"^= .*\n", text, flags=re.MULTILINE)
    blocks = shown.strip().split(b"\n\n")
    if not len(blocks) == len(records) == len(units):
        return []
    return [
        Result(_asking_for(unit), 0, block + b"\n\n" + record)
        for unit, block, record in zip(units, blocks, records, strict=True)
    ]


def unit_state(host: Host, unit: str) -> UnitState:
    """Ask systemd about *unit*, in one round trip."""
    text = host.query(*_asking_for(unit)).stdout.decode(errors="replace")
    properties, _, record = text.partition("\n\n")
    started = (line.split("  ", 1) for line in record.splitlines() if "  " in line)
    return UnitState(
        dict(line.partition("=")[::2] for line in properties.splitlines() if "=" in line),
        {path: digest for digest, path in started},
    )


RUNS = ("activating", "active", "deactivating", "reloading")
"""What systemd says of a unit that has not ended (systemctl(1), ActiveState)."""


def runs(host: Host, unit: str) -> bool:
    """Whether *unit* has not ended."""
    return host.query("systemctl", "show", "--property=ActiveState", "--value", "--", unit).text.strip() in RUNS


@dataclass(frozen=True, slots=True)
class Running:
    """A systemd unit that is enabled, runs, and was started with exactly these *files*.

    The unit records the digests of its files when it starts (``record-start`` in its ExecStartPre). So a run that was
    interrupted between a write and the restart is completed by the next one, and a reboot needs no restart.
    *reloads* names the files for which ``systemctl reload`` is enough. A running unit is restarted only when *gate*
    returns None: another host may be down.
    """

    unit: str
    files: Sequence[File]
    reloads: Sequence[str] = ()
    gate: Condition | None = None
    gate_timeout: float = 120
    timeout: float = 90
    settle: float = 15

    @property
    def title(self) -> str:
        """What apply does."""
        return f"start {self.unit}"

    def _stale(self, state: UnitState) -> list[str]:
        return [file.path for file in self.files if state.started.get(file.path) != file.digest]

    def stale(self, host: Host) -> list[str]:
        """The paths of files whose earlier versions it runs with; all of them if it does not run."""
        state = unit_state(host, self.unit)
        return self._stale(state) if state.active else [file.path for file in self.files]

    def verb(self, host: Host) -> str | None:
        """What apply does: ``start``, ``reload`` or ``restart``; None: nothing."""
        return self._verb(unit_state(host, self.unit))

    def _verb(self, state: UnitState) -> str | None:
        if not state.active:
            return "start"
        stale = self._stale(state)
        return ("reload" if set(stale) <= set(self.reloads) else "restart") if stale else None

    def diff(self, host: Host) -> str | None:
        """Why it must be enabled, started, reloaded or restarted; or None."""
        state = unit_state(host, self.unit)
        reasons = []
        if not state.enabled:
            reasons.append("is enabled")
        if not state.active:
            reasons.append(f"is started (it is {state.properties.get('ActiveState', 'unknown')})")
        elif verb := self._verb(state):
            reasons.append(f"{verb}s, because it runs with earlier versions of {', '.join(self._stale(state))}")
        return f"{self.unit}: {', '.join(reasons)}" if reasons else None

    def apply(self, host: Host) -> None:
        """Enable, start, reload or restart it, and check that it stays up."""
        # This also reloads all unit files (systemctl(1), enable). It takes long, so there is no daemon-reload besides.
        host.run("systemctl", "enable", "--quiet", "--", self.unit)
        verb = self.verb(host)
        if verb is None:
            return
        if verb == "start":
            # A unit that failed too often in a row refuses to start until its counter is reset.
            host.query("systemctl", "reset-failed", "--", self.unit)
        elif verb == "restart" and self.gate is not None:
            wait(host, self.gate, what=f"{self.unit} may restart", timeout=self.gate_timeout)
        try:
            host.run("systemctl", verb, "--", self.unit, timeout=self.timeout)
        except CommandFailed as error:
            # The agent kills what could write, and may hit a process that prepares the start; systemd tries again.
            if unit_state(host, self.unit).properties.get("ActiveState") != "activating":
                raise self._failure(host, f"systemctl {verb} {self.unit} failed") from error
        # A reload continues after systemctl returns, and a process that exits immediately is restarted repeatedly.
        try:
            wait(host, self._unsettled, what=f"{self.unit} runs", timeout=self.settle)
        except CommandTimeout as error:
            raise self._failure(host, f"{self.unit} does not stay up") from error

    def _failure(self, host: Host, what: str) -> Error:
        return Error(
            f"{what}: {last_words(host, self.unit)}",
            host=host.name,
            hint=f"see: journalctl -u {self.unit}",
            code="ServiceFailed",
        )

    def _unsettled(self, host: Host) -> str | None:
        state = unit_state(host, self.unit).properties.get("ActiveState", "unknown")
        return None if state == "active" else f"it is {state}"


def last_words(host: Host, unit: str) -> str:
    """The last five lines that *unit* logged, as one line."""
    result = host.query("journalctl", "--no-pager", "--quiet", "-o", "cat", "-n", "5", "-u", unit)
    return " | ".join(result.text.splitlines()) or "it logged no message"


@dataclass(frozen=True, slots=True)
class Disabled:
    """A unit that neither runs nor starts at boot; its file stays."""

    unit: str

    @property
    def title(self) -> str:
        """What apply does."""
        return f"disable {self.unit}"

    def diff(self, host: Host) -> str | None:
        """That it runs or is enabled, or None."""
        state = unit_state(host, self.unit)
        return f"{self.unit}: stopped and disabled" if state.active or state.enabled else None

    def apply(self, host: Host) -> None:
        """Stop and disable it."""
        host.run("systemctl", "disable", "--quiet", "--now", "--", self.unit)


@dataclass(frozen=True, slots=True)
class NoService:
    """A unit that neither runs nor starts at boot, and whose file is removed."""

    unit: str

    @property
    def title(self) -> str:
        """What apply does."""
        return f"stop {self.unit}"

    def diff(self, host: Host) -> str | None:
        """What is still there, or None."""
        state = unit_state(host, self.unit)
        there = host.query("test", "-e", unit_path(self.unit)).ok
        if not there and not state.active and not state.enabled:
            return None
        return f"{self.unit}: stopped, disabled and removed"

    def apply(self, host: Host) -> None:
        """Stop and disable it, remove its file."""
        host.query("systemctl", "disable", "--quiet", "--now", "--no-reload", "--", self.unit, timeout=120)
        host.run("rm", "-f", "--", unit_path(self.unit), f"{STARTED}/{self.unit}")
        host.run("systemctl", "daemon-reload")
        host.query("systemctl", "reset-failed", "--", self.unit)


def unit_path(unit: str) -> str:
    """The path of the file of *unit*. An instance (``haproxy@1.service``) has that of its template."""
    name, at, rest = unit.partition("@")
    return f"{paths.UNITS}/{name}{at}{'.' + rest.rpartition('.')[2] if at else ''}"
