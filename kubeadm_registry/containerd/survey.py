"""What a host says about its containerd: version, unit, and every file that makes up its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry.containerd import proxy
from kubeadm_registry.containerd.settings import CONFIG, Layer, Refused, Version
from kubeadm_registry.host import FileState, Host

UNIT = "containerd.service"

#: One round trip: the unit's properties, the manager's environment, then program and version.
#: ``$1`` unit. The program is the unit's, since upstream's own lies where a plain SSH login has no PATH.
_ASK = """
properties=$(systemctl show --property=LoadState,ActiveState,KillMode,InvocationID \\
  --property=ExecStart,Environment,EnvironmentFiles -- "$1")
printf '%s\\n--\\n' "$properties"
systemctl show-environment 2>/dev/null | grep -i '_proxy=' || :
echo --
program=$(printf '%s\\n' "$properties" | sed -n 's/^ExecStart={ path=\\([^ ;]*\\).*/\\1/p' | head -n 1)
[ -n "$program" ] || program=$(PATH=$PATH:/usr/local/bin command -v containerd) || exit 0
echo "$program"
"$program" --version
"""

#: Shows files: ``$@`` are paths or patterns. For each file that there is a line "size mode owner:group real-path",
#: a line with the path asked for, and the content.
_SHOW = """
IFS=
LC_ALL=C
for pattern in "$@"; do
  for path in $pattern; do
    [ -f "$path" ] || continue
    printf '%s %s\\n%s\\n' "$(stat -L -c '%s %a %U:%G' -- "$path")" "$(readlink -f -- "$path")" "$path"
    cat -- "$path"
  done
done
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A file as it is on the host; *real* is its path without symbolic links."""

    path: str
    real: str
    state: FileState


def show(host: Host, *patterns: str) -> list[Shown]:
    """The plain files that *patterns* (paths, or with ``*``) name, in their order, in one round trip."""
    rest = host.query("sh", "-c", _SHOW, "show", *patterns).stdout if patterns else b""
    found = []
    while rest:
        head, _, rest = rest.partition(b"\n")
        path, _, rest = rest.partition(b"\n")
        size, mode, owner, real = head.decode().split(" ", 3)
        content, rest = rest[: int(size)], rest[int(size) :]
        found.append(Shown(path.decode(), real, FileState(content, int(mode, 8), owner)))
    return found


@dataclass(frozen=True, slots=True)
class Containerd:
    """The containerd of one host. *properties* are those of its unit, as systemctl names them."""

    program: str
    version: Version | None
    properties: dict[str, str]
    manager_environment: dict[str, str]

    @property
    def has_unit(self) -> bool:
        """Whether systemd knows the unit."""
        return self.properties.get("LoadState") == "loaded"

    @property
    def is_active(self) -> bool:
        """Whether it runs."""
        return self.properties.get("ActiveState") == "active"

    @property
    def invocation(self) -> str:
        """systemd's name for this very run of the unit; another one after each start."""
        return self.properties.get("InvocationID", "")

    @property
    def config(self) -> str:
        """The main configuration file: what the unit's command line names, else the default."""
        return self._option(r"(?:-c|--config)", CONFIG)

    @property
    def socket(self) -> str:
        """Where containerd listens, unless its configuration says otherwise."""
        return self._option(r"(?:-a|--address)", "/run/containerd/containerd.sock")

    def _option(self, names: str, default: str) -> str:
        found = re.search(rf"argv\[\]=[^;]*?\s{names}[ =](\S+)", self.properties.get("ExecStart", ""))
        return found[1] if found else default

    @property
    def environment_files(self) -> tuple[str, ...]:
        """The unit's EnvironmentFile= lines without our own, in their order."""
        names = re.findall(
            r"^EnvironmentFiles=(.*) \(ignore_errors=\w+\)$", self.properties.get("_all", ""), re.MULTILINE
        )
        return tuple(name for name in names if name != proxy.ENVIRONMENT)


def ask(host: Host) -> Containerd | None:
    """The host's containerd, or None if there is none."""
    text = host.query("sh", "-c", _ASK, "ask", UNIT).stdout.decode(errors="replace")
    unit, environment, program = (text + "--\n--\n").split("--\n", 2)
    lines = program.replace("--\n", "").splitlines()
    properties = dict(line.partition("=")[::2] for line in unit.splitlines() if "=" in line)
    # A unit has one EnvironmentFiles line for each file, so the whole text is kept beside the last of each.
    properties["_all"] = unit
    if not lines:
        return None
    return Containerd(lines[0], Version.parse(" ".join(lines[1:])), properties, proxy.parse_show(environment))


@dataclass(frozen=True, slots=True)
class Configuration:
    """The files of containerd's configuration, in the order in which containerd reads them; empty: there is none."""

    main: str
    files: tuple[Shown, ...]

    @property
    def layers(self) -> list[Layer]:
        """The files parsed. Raises Refused if one is not TOML. Without any file one that is empty."""
        if not self.files:
            return [Layer(self.main, "", {})]
        return [Layer.read(file.path, file.state.content) for file in self.files]

    def file(self, path: str) -> Shown | None:
        """The file of this path, or None."""
        return next((file for file in self.files if file.path == path), None)


def configuration(host: Host, main: str, version: Version) -> Configuration:
    """Read *main* and what it imports, breadth first and each file once, as containerd does."""
    files: dict[str, Shown] = {}
    pending: list[str] = [main]
    while pending:
        shown = [file for file in show(host, *pending) if file.path not in files]
        pending = []
        for file in shown:
            if file.path not in files:
                files[file.path] = file
                imports = Layer.read(file.path, file.state.content).imports
                pending += [_absolute(file.path, name, version) for name in imports]
    return Configuration(main, tuple(files.values()))


def _absolute(parent: str, name: str, version: Version) -> str:
    """An import is relative to the file that has it; in 1.6 a pattern is so to where systemd starts containerd: /."""
    base = "" if "*" in name and version < Version(1, 7) else parent.rpartition("/")[0]
    path = name if name.startswith("/") else f"{base}/{name}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def environment(host: Host, containerd: Containerd) -> dict[str, str]:
    """The environment that the unit gives containerd, without what we add to it.

    systemd's order: the manager's own, ``Environment=``, then each ``EnvironmentFile=``; later ones win.
    """
    found = dict(containerd.manager_environment)
    found |= proxy.parse_show(containerd.properties.get("Environment", ""))
    for file in show(host, *containerd.environment_files):
        found |= proxy.parse_environment_file(file.state.content.decode(errors="replace"))
    return found


#: Runs ``$@`` in the directory in which systemd runs containerd.
FROM_ROOT = 'cd / && exec "$@"'


def dumped(host: Host, containerd: Containerd, path: str) -> str:
    """What containerd itself makes of the configuration *path*. Raises Refused with its own words if it refuses it."""
    result = host.query("sh", "-c", FROM_ROOT, "dump", containerd.program, "--config", path, "config", "dump")
    if not result.ok:
        said = result.stderr.decode(errors="replace").strip()
        raise Refused(
            f"{path}: containerd does not read it: {said}", host=host.name, hint="mend the file and run again"
        )
    return result.stdout.decode(errors="replace")


def problems(host: Host, shown: Containerd | None) -> Iterator[str]:
    """Everything about the installation that keeps containerd from using the mirrors: one sentence each."""
    if shown is None:
        others = host.query("sh", "-c", _OTHERS, "others", "/usr/local/bin", "/usr/bin", "/opt/rke2/bin").text.split()
        if "k3s" in others or "rke2" in others:
            yield "this server runs k3s or RKE2, whose containerd is its own: use its registries.yaml, not this phase"
        elif others:
            yield f"containerd is not installed, {' and '.join(others)} is: kubeadm needs containerd or CRI-O"
        else:
            yield "containerd is not installed: install it (package containerd or containerd.io), then run again"
        return
    if shown.version is None:
        yield f"{shown.program} --version names no version: containerd 1.6 or later is needed"
    elif shown.version < Version(1, 6):
        yield f"containerd {shown.version} is too old for hosts.toml with kubeadm: 1.6 or later is needed"
    if not shown.has_unit:
        yield f"{shown.program} is there, but systemd knows no {UNIT}: install containerd's unit, then run again"
    elif not shown.is_active:
        yield f"{UNIT} does not run: see `journalctl -u containerd`, start it with `systemctl enable --now containerd`"


#: Which other container runtimes are in the directories ``$@``.
_OTHERS = """
for name in k3s rke2 dockerd crio; do
  for directory in "$@"; do
    [ -x "$directory/$name" ] && echo "$name" && break
  done
done
:
"""


def notices(host: Host, shown: Containerd) -> Iterator[str]:
    """What the reader should know about the unit, though nothing keeps us from going on."""
    mode = shown.properties.get("KillMode", "process")
    if shown.has_unit and mode not in ("process", "none"):
        yield f"{UNIT} has KillMode={mode}: a restart of containerd ends the containers of {host.name}"
