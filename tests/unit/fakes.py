"""A host in memory, behind the Transport seam: files, users, units, and a log of what was asked and done.

It knows the scripts of ``host`` and ``changes`` by identity, the few programs that Changes call in exactly the form in
which they call them, and whatever a test registers with ``answer``. Anything else is an UnknownCommand: a fake that
says yes to anything proves nothing.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from kubeadm_registry import secrets
from kubeadm_registry.components import data, garage_layout, helper, retention
from kubeadm_registry.engine import changes, users, workflow
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.result import Result
from kubeadm_registry.transport import host as host_module
from kubeadm_registry.transport.host import FileState, Host

UNITS = "/etc/systemd/system"
#: What a bare host has of the folders that we write below.
BARE = ("/", "/etc", "/etc/systemd", UNITS, "/opt", "/run", "/run/systemd", "/run/systemd/system", "/usr",
        "/usr/local", "/usr/local/bin", "/var", "/var/lib")  # fmt: skip


class UnknownCommand(AssertionError):
    """The host was asked for something that the fake does not understand."""


class Failed(Exception):
    """The command ends with this status and these words."""

    def __init__(self, words: str = "", code: int = 1) -> None:
        super().__init__(words)
        self.code = code


@dataclass(frozen=True)
class Dir:
    mode: int = 0o755
    owner: str = "root:root"


@dataclass(frozen=True)
class Link:
    target: str


@dataclass
class Unit:
    """What systemd knows of a unit: its file as of the last daemon-reload (None: not found), and how it runs."""

    loaded: bytes | None = None
    active: str = "inactive"
    enabled: bool = False
    starts: int = 0
    reloads: int = 0


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    stdin: bytes


#: The words of a command by which its answers are found, before all of them are compared.
_WORDS = 5

Answer = Result | bytes | str | int | Callable[[tuple[str, ...], bytes], "bytes | str | int"]


@dataclass
class Registered:
    argv: tuple[str, ...]
    answer: Answer
    act: str
    number: int


@dataclass
class FakeTransport:
    """One host. ``tree`` holds files, folders and links by path; ``acts`` what changed it, in order."""

    name: str = "cp-1"
    tree: dict[str, FileState | Dir | Link] = field(default_factory=lambda: dict.fromkeys(BARE, Dir()))
    users: dict[str, set[str]] = field(default_factory=lambda: {"root": {"root"}})
    groups: set[str] = field(default_factory=lambda: {"root"})
    #: Mount points of /etc/fstab on which nothing is mounted.
    unmounted: set[str] = field(default_factory=set)
    #: Users with processes.
    logged_in: set[str] = field(default_factory=set)
    logged_in_with: bytes = b""
    """What the file had in it by which they were let in."""
    units: dict[str, Unit] = field(default_factory=dict)
    log: list[Command] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)
    flushed: list[tuple[str, ...]] = field(default_factory=list)
    #: The connection is lost before the act of this number, as if the power went.
    cut_at: int | None = None
    #: Units that do not start, with what they log.
    broken: dict[str, str] = field(default_factory=dict)
    #: Called with the unit's name after each start.
    on_start: Callable[[str], None] = lambda unit: None
    holder: str | None = None
    locked_by: str | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        #: By the first words of the commands, the one registered last first.
        self._answers: dict[tuple[str, ...], list[Registered]] = {}
        self._registered = 0
        self._lock = threading.RLock()

    # ---- the Transport ------------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Result:
        with self._lock:
            if self.closed:
                raise ConnectionFailed("the connection is closed", host=self.name)
            argv = tuple(argv)
            self.log.append(Command(argv, stdin))
            try:
                output = self._run(argv, stdin)
            except Failed as failed:
                return Result(argv, failed.code, b"", str(failed).encode())
            return output if isinstance(output, Result) else Result(argv, 0, output)

    def upload(self, source: Path, path: str) -> None:
        with self._lock:
            self._act(f"upload {path}")
            self.put(path, source.read_bytes(), 0o600)

    def lock(self, who: str) -> str | None:
        if self.holder is None:
            self.locked_by = who
        return self.holder

    def dial(self, address: str, port: int) -> tuple[str, int]:
        return address, port

    def close(self) -> None:
        self.closed = True

    # ---- for tests ----------------------------------------------------------------------------------------------

    def host(self, address: str = "10.0.0.11") -> Host:
        return Host(self.name, address, self)

    def answer(self, *argv: str, with_: Answer = b"", act: str = "") -> None:
        """Say *with_* to commands that begin with *argv*; the one registered last wins. *act*: it changes something.

        A number is an exit status; a function gets argv and standard input.
        """
        self._registered += 1
        self._answers.setdefault(argv[:_WORDS], []).insert(0, Registered(argv, with_, act, self._registered))

    def prefer(self, *argv: str) -> None:
        """Let the answers to commands that begin with *argv* come before what was registered since."""
        meant = [one for kept in self._answers.values() for one in kept if one.argv[: len(argv)] == argv]
        for found in sorted(meant, key=lambda one: one.number):
            self.answer(*found.argv, with_=found.answer, act=found.act)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """What is registered in the ``with`` is forgotten afterwards."""
        kept, started = {words: list(found) for words, found in self._answers.items()}, self.on_start
        try:
            yield
        finally:
            self._answers, self.on_start = kept, started

    def put(self, path: str, content: bytes | str, mode: int = 0o644, owner: str = "root:root") -> None:
        """A file that is there already, with the folders above it."""
        self._folders(posixpath.dirname(path))
        self.tree[path] = FileState(content.encode() if isinstance(content, str) else content, mode, owner)

    def content(self, path: str) -> bytes:
        found = self.tree[path]
        assert isinstance(found, FileState), f"{path} is no file"
        return found.content

    def files(self) -> dict[str, FileState]:
        return {path: node for path, node in sorted(self.tree.items()) if isinstance(node, FileState)}

    def copy(self) -> FakeTransport:
        """Another host, which is as this one is now; it knows no answers."""
        return replace(
            self,
            tree=dict(self.tree),
            users={name: set(groups) for name, groups in self.users.items()},
            groups=set(self.groups),
            logged_in=set(self.logged_in),
            units={name: replace(unit) for name, unit in self.units.items()},
            log=list(self.log),
            acts=list(self.acts),
            flushed=list(self.flushed),
            broken=dict(self.broken),
            on_start=lambda unit: None,
        )

    def unit(self, name: str) -> Unit:
        return self.units.setdefault(name, Unit())

    def reboot(self) -> None:
        """What was in /run is gone; enabled units start, everything else does not run."""
        self.closed, self.cut_at = False, None
        for path in [path for path in self.tree if path.startswith("/run/") and path not in BARE]:
            del self.tree[path]
        for name, unit in self.units.items():
            unit.loaded, unit.active = self._unit_file(name), "inactive"
        for name, unit in list(self.units.items()):
            if unit.enabled:
                self._start(name)

    def snapshot(self) -> object:
        """Everything that a second run must leave as it is."""
        return (
            dict(self.tree),
            {user: set(groups) for user, groups in self.users.items()},
            {n: (u.active, u.enabled) for n, u in self.units.items() if u.active != "inactive" or u.enabled},
        )

    # ---- commands -----------------------------------------------------------------------------------------------

    def _run(self, argv: tuple[str, ...], stdin: bytes) -> bytes | Result:
        if (registered := self._registered_for(argv)) is not None:
            if registered.act:
                self._act(registered.act)
            return self._say(registered.answer, argv, stdin)
        if argv[:2] == ("sh", "-c"):
            script = _SCRIPTS.get(argv[2])
            if script is None:
                raise UnknownCommand(f"{self.name}: no script of host or changes: {argv[2]!r} {argv[3:]}")
            return script(self, argv[4:], stdin)
        for pattern, program in _PROGRAMS:
            if (found := pattern.fullmatch("\0".join(argv))) is not None:
                return program(self, found)
        raise UnknownCommand(f"{self.name}: {argv}")

    def _registered_for(self, argv: tuple[str, ...]) -> Registered | None:
        """The answer to *argv* that was registered last; most commands are asked for far more often than taught."""
        found = None
        for count in range(_WORDS + 1):
            for one in self._answers.get(argv[:count], ()) if count <= len(argv) else ():
                if argv[: len(one.argv)] == one.argv:
                    found = one if found is None or one.number > found.number else found
                    break
        return found

    def _say(self, answer: Answer, argv: tuple[str, ...], stdin: bytes) -> bytes | Result:
        if isinstance(answer, Result):
            return answer
        said = answer(argv, stdin) if callable(answer) else answer
        if isinstance(said, int):
            return Result(argv, said, b"", b"" if said == 0 else b"it failed")
        return said.encode() if isinstance(said, str) else said

    def _act(self, what: str) -> None:
        if self.cut_at is not None and len(self.acts) >= self.cut_at:
            self.closed = True
            raise ConnectionFailed("the connection broke", host=self.name)
        self.acts.append(what)

    def _read(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        (path,) = arguments
        found = self._follow(path)
        if found is None and path not in self.tree:
            raise Failed(code=3)
        if not isinstance(found, FileState):
            raise Failed(code=4)
        names = self._owner(found.owner)
        numbers = ":".join(
            "0" if name == "root" else name if name.isdigit() else "900" for name in found.owner.split(":")
        )
        return f"{found.mode:o} {names} {numbers}\n".encode() + found.content

    def _read_many(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        codes, heads, contents = b"", b"", b""
        for path in arguments:
            try:
                head, _newline, content = self._read((path,), b"").partition(b"\n")
            except Failed as failed:
                codes += b"%d\n" % failed.code
            else:
                codes += b"0\n"
                heads += b"%d %s\n" % (len(content), head)
                contents += content
        return codes + heads + contents

    def _write(self, arguments: tuple[str, ...], stdin: bytes) -> bytes:
        path, mode, owner, size, digest, _, *validate = arguments
        assert (size, digest) == (str(len(stdin)), hashlib.sha256(stdin).hexdigest())
        if not isinstance(self.tree.get(posixpath.dirname(path)), Dir):
            raise Failed(f"mktemp: failed to create file in {posixpath.dirname(path)}: No such file or directory")
        self._known_owner(owner)
        if validate:
            checked = self._run(tuple(validate), stdin)
            if isinstance(checked, Result) and not checked.ok:
                raise Failed(checked.stderr.decode(), checked.code)
        if isinstance(self.tree.get(path), Dir):
            raise Failed(f"mv: cannot overwrite directory '{path}' with non-directory")
        self._act(f"write {path}, mode {int(mode, 8):o}, owner {owner}")
        self.tree[path] = FileState(stdin, int(mode, 8), owner)
        return b""

    def _flush(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        self.flushed.append(arguments)
        return b""

    def _data(self, directories: tuple[str, ...], _: bytes) -> bytes:
        found = [path for directory in directories for path in self._below(directory) if "lost+found" not in path]
        return "".join(found[:1]).encode()

    def _stored(self, directories: tuple[str, ...]) -> list[str]:
        """The files that Garage has there, without the node's key."""
        return [
            path for directory in directories for path in self._below(directory)
            if not isinstance(self.tree[path], Dir) and posixpath.basename(path) not in ("node_key", "node_key.pub")
        ]  # fmt: skip

    def _look(self, directories: tuple[str, ...], _: bytes) -> bytes:
        return "".join(f"{path}\n" for path in self._stored(directories)[:1]).encode()

    def _clear(self, directories: tuple[str, ...], _: bytes) -> bytes:
        self._act(f"clear {' '.join(directories)}")
        for path in self._stored(directories):
            del self.tree[path]
        return b""

    def _sweep(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        for path in [path for path in self.tree if path.endswith(host_module.UNFINISHED)]:
            del self.tree[path]
        return b""

    def _is_there(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        path, only_if_empty = arguments
        if path not in self.tree or (only_if_empty and self._below(path)):
            raise Failed
        return b""

    def _way(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        real = posixpath.normpath(arguments[0])
        while link := next((one for one in self._above(real) if isinstance(self.tree.get(one), Link)), None):
            target = self.tree[link]
            assert isinstance(target, Link)
            real = posixpath.normpath(posixpath.join(posixpath.dirname(link), target.target)) + real[len(link) :]
        lines = [real]
        for path in self._above(real):
            node = self.tree.get(path)
            if node is not None:
                assert not isinstance(node, Link)
                lines.append(f"{node.mode:o}|{'directory' if isinstance(node, Dir) else 'regular file'}|{path}")
        return "\n".join(lines).encode() + b"\n"

    def _unmounted(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        return b"".join(f"{path}\n".encode() for path in self._above(arguments[0]) if path in self.unmounted)

    def _above(self, path: str) -> list[str]:
        """*path* and all folders above it, the innermost first."""
        return [path] if path == "/" else [path, *self._above(posixpath.dirname(path))]

    def _unit_states(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        records, *names = arguments
        told = [self._unit_state((name, f"{records}/{name}"), b"").partition(b"\n\n") for name in names]
        shown = b"\n".join(properties + b"\n" for properties, _, _ in told)
        return shown + b"".join(b"= %s\n%s" % (name.encode(), it[2]) for name, it in zip(names, told, strict=True))

    def _unit_state(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        name, record = arguments
        unit = self.units.get(name) or Unit()
        on_disk = self._unit_file(name)
        loaded = unit.loaded if unit.loaded is not None else on_disk
        state = ""
        if on_disk is not None:
            state = ("enabled" if unit.enabled else "disabled") if b"[Install]" in on_disk else "static"
        properties = {
            "LoadState": "loaded" if loaded is not None else "not-found",
            "ActiveState": unit.active,
            "SubState": {"active": "running", "failed": "failed"}.get(unit.active, "dead"),
            "UnitFileState": state,
            "NeedDaemonReload": "yes" if loaded != on_disk else "no",
        }
        noted = self.tree.get(record)
        text = "".join(f"{key}={value}\n" for key, value in properties.items()).encode() + b"\n"
        return text + (noted.content if isinstance(noted, FileState) else b"")

    def _instances(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        """The instances that systemd knows, and the files that are there."""
        pattern, *paths = arguments
        known = [name for name in sorted(self.units) if fnmatchcase(name, pattern)]
        return "".join(f"{line}\n" for line in (*known, *(path for path in paths if path in self.tree))).encode()

    def _remove_instances(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        pattern, *paths = arguments
        self._act(f"stop {pattern}, remove {' '.join(paths)}")
        for name in [name for name in self.units if fnmatchcase(name, pattern)]:
            del self.units[name]
        for path in paths:
            self.tree.pop(path, None)
        return b""

    # ---- what the programs do -----------------------------------------------------------------------------------

    def _stat_many(self, found: re.Match[str]) -> bytes:
        there = [path for path in found["paths"].split("\0") if path in self.tree]
        return b"".join(f"{path}|".encode() + self._stat_of(path) for path in there)

    def _stat(self, found: re.Match[str]) -> bytes:
        return self._stat_of(self._path(found))

    def _stat_of(self, path: str) -> bytes:
        node = self.tree.get(path)
        if node is None:
            raise Failed(f"stat: cannot statx '{path}': No such file or directory")
        if isinstance(node, Link):
            return b"symbolic link|777|root:root\n"
        kind = "directory" if isinstance(node, Dir) else "regular file" if node.content else "regular empty file"
        return f"{kind}|{node.mode:o}|{self._owner(node.owner)}\n".encode()

    def _install_directory(self, found: re.Match[str]) -> bytes:
        return self._make_directory((self._path(found), found["mode"], "root:root"), b"")

    def _make_directory(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        path, mode, owner = arguments[0], int(arguments[1], 8), arguments[2]
        self._known_owner(owner)
        if isinstance(self.tree.get(path), FileState):
            raise Failed(f"install: cannot create directory '{path}': File exists")
        self._act(f"make directory {path}, mode {mode:o}, owner {owner}")
        self._folders(path)
        self.tree[path] = Dir(mode, owner)
        return b""

    def _chown_all(self, found: re.Match[str]) -> bytes:
        path, owner = self._path(found), found["owner"]
        self._known_owner(owner)
        self._act(f"chown -R {owner} {path}")
        for one in (path, *self._below(path)):
            node = self.tree[one]
            if isinstance(node, Dir):
                self.tree[one] = Dir(node.mode, owner)
            elif isinstance(node, FileState):
                self.tree[one] = FileState(node.content, node.mode, owner)
        return b""

    def _rmdir_if_empty(self, found: re.Match[str]) -> bytes:
        return b"" if self._below(self._path(found)) else self._rmdir(found)

    def _rmdir(self, found: re.Match[str]) -> bytes:
        path = self._path(found)
        if not isinstance(self.tree.get(path), Dir) or self._below(path):
            raise Failed(f"rmdir: failed to remove '{path}'")
        self._act(f"remove {path}")
        del self.tree[path]
        return b""

    def _remove(self, found: re.Match[str]) -> bytes:
        paths = found["paths"].split("\0")
        there = [one for path in paths for one in (path, *self._below(path)) if one in self.tree]
        self._act(f"remove {' '.join(paths)}")
        for one in there:
            del self.tree[one]
        return b""

    def _id(self, found: re.Match[str]) -> bytes:
        if found["user"] not in self.users:
            raise Failed(f"id: '{found['user']}': no such user")
        return (" ".join(sorted(self.users[found["user"]])) + "\n").encode()

    def _users(self, names: tuple[str, ...], _: bytes) -> bytes:
        lines = (f"0 {' '.join(sorted(self.users[one]))}" if one in self.users else "1 " for one in names)
        return "".join(f"{line}\n" for line in lines).encode()

    def _primary_group(self, found: re.Match[str]) -> bytes:
        self._id(found)
        return f"{found['user']}\n".encode()

    def _useradd(self, found: re.Match[str]) -> bytes:
        name = found["user"]
        if name in self.users:
            raise Failed(f"useradd: user '{name}' already exists", 9)
        if (name in self.groups) is not (found.groupdict().get("group") == name):
            raise Failed(f"useradd: group {name} exists, or does not", 9)
        self._act(f"add user {name}")
        self.users[name] = {name}
        self.groups.add(name)
        return b""

    def _usermod(self, found: re.Match[str]) -> bytes:
        if found["group"] not in self.groups:
            raise Failed(f"usermod: group '{found['group']}' does not exist", 6)
        self._act(f"{found['user']} joins {found['group']}")
        self.users[found["user"]].add(found["group"])
        return b""

    def _sessions(self, arguments: tuple[str, ...], _: bytes) -> bytes:
        name, kill, before = arguments
        if kill:
            self._act(f"end sessions of {name}")
            self.logged_in.discard(name)
        old = not before or self.content(before) != self.logged_in_with
        return b"/proc/77\n" if name in self.logged_in and old else b""

    def _userdel(self, found: re.Match[str]) -> bytes:
        name = found["user"]
        if name in self.logged_in:
            raise Failed(f"userdel: user {name} is currently used by process 77", 8)
        if name not in self.users:
            raise Failed(f"userdel: user '{name}' does not exist", 6)
        self._act(f"remove user {name}")
        del self.users[name]
        if not any(name in groups for groups in self.users.values()):
            self._groupdel(found)
        # Whoever gets the number next is somebody else.
        for path, node in self.tree.items():
            if isinstance(node, Dir | FileState) and name in node.owner.split(":"):
                owner = node.owner.replace(name, "UNKNOWN")
                self.tree[path] = Dir(node.mode, owner) if isinstance(node, Dir) else FileState(
                    node.content, node.mode, owner)  # fmt: skip
        return b""

    def _groupdel(self, found: re.Match[str]) -> bytes:
        self.groups.discard(found["user"])
        for groups in self.users.values():
            groups.discard(found["user"])
        return b""

    def _getent(self, found: re.Match[str]) -> bytes:
        if found["name"] not in (self.users if found["database"] == "passwd" else self.groups):
            raise Failed(code=2)
        home = "/root" if found["name"] == "root" else "/nonexistent"
        return f"{found['name']}:x:990:990::{home}:/bin/sh\n".encode()

    def _find(self, found: re.Match[str]) -> bytes:
        below = [one for one in self._below(self._path(found)) if not isinstance(self.tree[one], Dir)]
        return f"{below[0]}\n".encode() if below else b""

    def _test(self, found: re.Match[str]) -> bytes:
        node, what = self._follow(found["path"]), found["what"]
        good = {
            "e": node is not None,
            "d": isinstance(node, Dir),
            "s": isinstance(node, FileState) and bool(node.content),
            "x": isinstance(node, FileState) and bool(node.mode & 0o111),
        }
        if not good[what]:
            raise Failed
        return b""

    def _journal(self, found: re.Match[str]) -> bytes:
        return self.broken.get(found["unit"], "").encode()

    # ---- systemd ------------------------------------------------------------------------------------------------

    def _daemon_reload(self, _: re.Match[str] | None = None) -> bytes:
        for name, unit in list(self.units.items()):  # others may ask meanwhile
            unit.loaded = self._unit_file(name)
        return b""

    def _need_daemon_reload(self, found: re.Match[str]) -> bytes:
        patterns = found["units"].split("\0")
        known = [(name, unit) for name, unit in self.units.items() if any(fnmatchcase(name, one) for one in patterns)]
        stale = [unit.loaded is not None and unit.loaded != self._unit_file(name) for name, unit in known]
        return "\n".join(f"NeedDaemonReload={'yes' if one else 'no'}\n" for one in stale).encode()

    def _enable(self, found: re.Match[str]) -> bytes:
        name = found["unit"]
        text = self._unit_file(name)
        if text is None:
            raise Failed(f"Failed to enable unit: Unit file {name} does not exist.")
        if b"[Install]" in text and not self.unit(name).enabled:
            self._act(f"enable {name}")
            self.unit(name).enabled = True
        return self._daemon_reload()

    def _disable_now(self, found: re.Match[str]) -> bytes:
        name = found["unit"]
        unit = self.unit(name)
        # Without file and links systemctl fails before it stops anything (measured with systemd 257).
        if self._unit_file(name) is None and not unit.enabled:
            raise Failed(f"Failed to disable unit: Unit {name} does not exist")
        self._act(f"stop {name}")
        unit.active, unit.enabled = "inactive", False
        return b""

    def _reset_failed(self, found: re.Match[str]) -> bytes:
        unit = self.unit(found["unit"])
        unit.active = "inactive" if unit.active == "failed" else unit.active
        return b""

    def _active_state(self, found: re.Match[str]) -> bytes:
        return f"{self.unit(found['unit']).active}\n".encode()

    def _is_active(self, found: re.Match[str]) -> bytes:
        if self.unit(found["unit"]).active != "active":
            raise Failed(code=3)
        return b""

    def _job(self, found: re.Match[str]) -> bytes:
        verb, name = found["verb"], found["unit"]
        unit = self.unit(name)
        if verb not in ("start", "restart", "reload", "stop"):
            raise UnknownCommand(f"{self.name}: systemctl {verb} {name}")
        if verb == "stop":
            self._act(f"stop {name}")
            unit.active = "inactive"
            return b""
        if verb == "reload":
            if unit.active != "active" or not re.search(rb"^ExecReload=", unit.loaded or b"", re.MULTILINE):
                raise Failed(f"Failed to reload {name}: Job type reload is not applicable for unit {name}.", 3)
            self._act(f"reload {name}")
            self._record(name, "ExecReload")
            unit.reloads += 1
            self.on_start(name)
            return b""
        self._act(f"{verb} {name}")
        self._start(name)
        return b""

    def _start(self, name: str) -> None:
        unit = self.unit(name)
        if unit.loaded is None:
            unit.loaded = self._unit_file(name)
        if unit.loaded is None:
            raise Failed(f"Failed to start {name}: Unit {name} not found.", 5)
        self._record(name, "ExecStartPre")
        if name in self.broken:
            unit.active = "failed"
            raise Failed(f"Job for {name} failed.")
        unit.active = "active"
        unit.starts += 1
        for part in re.findall(r"^Slice=(\S+)$", unit.loaded.decode(), re.MULTILINE):
            self.unit(part).active = "active"
        self.on_start(name)

    def _record(self, name: str, when: str) -> None:
        """What ``record-start`` does, if the unit calls it: the real script is tested in test_components."""
        for line in re.findall(rf"^{when}=\+?(.*)$", (self.unit(name).loaded or b"").decode(), re.MULTILINE):
            program, *arguments = line.split()
            if program != changes.RECORD_START:
                continue
            if not isinstance(self.tree.get(program), FileState):
                raise Failed(f"{program}: No such file or directory")
            unit, *paths = (word.replace("%n", name) for word in arguments)
            lines = [f"{changes.File(path, self.content(path)).digest}  {path}\n" for path in paths]
            self.put(f"{changes.STARTED}/{unit}", "".join(lines))

    def _unit_file(self, name: str) -> bytes | None:
        template = re.sub(r"@.*\.", "@.", name)
        found = self.tree.get(f"{UNITS}/{name}") or self.tree.get(f"{UNITS}/{template}")
        return found.content if isinstance(found, FileState) else None

    # ---- helpers ------------------------------------------------------------------------------------------------

    def _path(self, found: re.Match[str]) -> str:
        return found["path"]

    def _real(self, found: re.Match[str]) -> bytes:
        path = self._path(found)
        while isinstance(node := self.tree.get(path), Link):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), node.target))
        return f"{path}\n".encode()

    def _follow(self, path: str) -> FileState | Dir | None:
        node = self.tree.get(path)
        if isinstance(node, Link):
            return self._follow(posixpath.normpath(posixpath.join(posixpath.dirname(path), node.target)))
        return node

    def _below(self, path: str) -> list[str]:
        return [one for one in self.tree if one.startswith(path.rstrip("/") + "/") and one != path]

    def _folders(self, path: str) -> None:
        while path not in self.tree:
            self.tree[path] = Dir()
            path = posixpath.dirname(path)

    def _known_owner(self, owner: str) -> None:
        user, _, group = owner.partition(":")
        if user not in self.users or group not in self.groups:
            raise Failed(f"chown: invalid user: '{owner}'")

    def _owner(self, owner: str) -> str:
        user, _, group = owner.partition(":")
        return f"{user if user in self.users else 'UNKNOWN'}:{group if group in self.groups else 'UNKNOWN'}"


_SCRIPTS: dict[str, Callable[[FakeTransport, tuple[str, ...], bytes], bytes]] = {
    host_module._READ: FakeTransport._read,
    host_module._READ_MANY: FakeTransport._read_many,
    host_module._WRITE: FakeTransport._write,
    changes._THERE: FakeTransport._is_there,
    changes._MAKE: FakeTransport._make_directory,
    changes._UNIT: FakeTransport._unit_state,
    changes._UNITS: FakeTransport._unit_states,
    users._USERS: FakeTransport._users,
    workflow._FLUSH: FakeTransport._flush,
    secrets._DATA: FakeTransport._data,
    workflow._SWEEP: FakeTransport._sweep,
    garage_layout._LOOK: FakeTransport._look,
    garage_layout._REMOVE: FakeTransport._clear,
    data._WAY: FakeTransport._way,
    data._UNMOUNTED: FakeTransport._unmounted,
    retention._UNITS: FakeTransport._instances,
    retention._REMOVE: FakeTransport._remove_instances,
    helper._SESSIONS: FakeTransport._sessions,
}


def _form(text: str) -> re.Pattern[str]:
    """*text* with ``<name>`` for one word and ``<name...>`` for one or more."""
    words = []
    for word in text.split():
        many, one = re.fullmatch(r"<(\w+)\.\.\.>", word), re.fullmatch(r"(.*)<(\w+)>", word)
        if many:
            words.append(rf"(?P<{many[1]}>[^\0]+(?:\0[^\0]+)*)")
        elif one:
            words.append(rf"{re.escape(one[1])}(?P<{one[2]}>[^\0]+)")
        else:
            words.append(re.escape(word))
    return re.compile("\0".join(words), re.DOTALL)


_PROGRAMS: tuple[tuple[re.Pattern[str], Callable[[FakeTransport, re.Match[str]], bytes]], ...] = tuple(
    (_form(text), program)
    for text, program in (
        ("stat -c %F|%a|%U:%G -- <path>", FakeTransport._stat),
        ("stat -c %n|%F|%a|%U:%G -- <paths...>", FakeTransport._stat_many),
        ("install -d -m <mode> -- <path>", FakeTransport._install_directory),
        ("chown -R -P -- <owner> <path>", FakeTransport._chown_all),
        ("rmdir -- <path>", FakeTransport._rmdir),
        ("rmdir --ignore-fail-on-non-empty -- <path>", FakeTransport._rmdir_if_empty),
        ("rm -rf --one-file-system -- <paths>", FakeTransport._remove),
        ("rm -f -- <paths...>", FakeTransport._remove),
        ("readlink -f -- <path>", FakeTransport._real),
        ("id -Gn -- <user>", FakeTransport._id),
        ("id -gn -- <user>", FakeTransport._primary_group),
        ("id -- <user>", FakeTransport._id),
        ("useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "
         "--comment kubeadm-registry -- <user>", FakeTransport._useradd),
        ("useradd --system --user-group --no-create-home --home-dir <path> --shell /bin/sh --password * "
         "--comment kubeadm-registry -- <user>", FakeTransport._useradd),
        ("useradd --system --gid <group> --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "
         "--comment kubeadm-registry -- <user>", FakeTransport._useradd),
        ("usermod --append --groups <group> -- <user>", FakeTransport._usermod),
        ("userdel -- <user>", FakeTransport._userdel),
        ("groupdel -- <user>", FakeTransport._groupdel),
        ("getent <database> <name>", FakeTransport._getent),
        ("find <path> ! -type d -print -quit", FakeTransport._find),
        ("test -<what> <path>", FakeTransport._test),
        ("journalctl --no-pager --quiet -o cat -n 5 -u <unit>", FakeTransport._journal),
        ("systemctl daemon-reload", FakeTransport._daemon_reload),
        ("systemctl show --property=ActiveState --value -- <unit>", FakeTransport._active_state),
        ("systemctl show --property=NeedDaemonReload -- <units...>", FakeTransport._need_daemon_reload),
        ("systemctl enable --quiet -- <unit>", FakeTransport._enable),
        ("systemctl disable --quiet --now -- <unit>", FakeTransport._disable_now),
        ("systemctl disable --quiet --now --no-reload -- <unit>", FakeTransport._disable_now),
        ("systemctl reset-failed -- <unit>", FakeTransport._reset_failed),
        ("systemctl is-active --quiet -- <unit>", FakeTransport._is_active),
        ("systemctl <verb> -- <unit>", FakeTransport._job),
    )
)  # fmt: skip
