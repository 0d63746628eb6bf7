"""What a host says about its containerd: version, unit, and every file that makes up its configuration."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kubeadm_registry.containerd import http_proxy
from kubeadm_registry.containerd.settings import CONFIG, Layer, Refused, Version
from kubeadm_registry.errors import Error
from kubeadm_registry.result import Result
from kubeadm_registry.transport.host import OWNER, UNFINISHED, FileState, Host, owner_of

UNIT = "containerd.service"
_ON_THE_BUS = "/org/freedesktop/systemd1/unit/containerd_2eservice"

#: One round trip: the unit's properties, the manager's environment, program and version, the process's command line.
#: ``$1`` unit, ``$2`` /proc, ``$3`` the unit on the bus, which tells its environment (``as 2 "A=1" "B=c d"``) where
#: systemctl does not: that of systemd 239 prints ``[unprintable]`` for what has a blank in it. The program is the
#: unit's, since upstream's own lies where a plain SSH login has no PATH; where that is another one, such as ``env``
#: (Flatcar), it is what that has become.
_ASK = """
properties=$(systemctl show --property=LoadState,ActiveState,KillMode,InvocationID,MainPID \\
  --property=ExecStart,Environment,EnvironmentFiles -- "$1")
case $properties in *'=[unprintable]'*|*' [unprintable]'*)
  environment=$(busctl get-property org.freedesktop.systemd1 "$3" org.freedesktop.systemd1.Service Environment) &&
    properties="$properties
Environment=${environment#as * }"
esac
printf '%s\\n--\\n' "$properties"
systemctl show-environment 2>/dev/null | grep -i '_proxy=' || :
echo --
program= pid=
while IFS= read -r line; do
  case $line in
    MainPID=*) pid=${line#MainPID=} ;;
    "ExecStart={ path="*) [ -n "$program" ] || { program=${line#*path=}; program=${program%%[ ;]*}; } ;;
  esac
done <<END
$properties
END
[ -n "$program" ] || program=$(PATH=$PATH:/usr/local/bin command -v containerd) || exit 0
if [ "${program##*/}" != containerd ] && [ "${pid:-0}" != 0 ]; then
  started=$(readlink -- "$2/$pid/exe") && [ "${started##*/}" = containerd ] && program=$started
fi
echo "$program"
"$program" --version
echo --
[ "${pid:-0}" = 0 ] || cat -- "$2/$pid/cmdline" 2>/dev/null || :
"""

#: Shows files, with a few processes for all of them: ``$@`` are paths or patterns. For each path that there is a line
#: "argument kind path", where ``-`` is the kind of what is not a plain file; after an empty line a line
#: "size mode owner" for each plain file, with the owner as ``host.OWNER`` says, then a line with its path without links
#: for each, then the contents.
_SHOW = f"""
IFS=
LC_ALL=C
number=0 count=$#
for pattern; do
  for path in $pattern; do
    if [ -f "$path" ]; then set -- "$@" "$path"; printf '%s f %s\\n' "$number" "$path"
    elif [ -e "$path" ] || [ -L "$path" ]; then printf '%s - %s\\n' "$number" "$path"
    fi
  done
  number=$((number + 1))
done
echo
shift "$count"
[ $# = 0 ] || {{ stat -L -c '%s %a {OWNER}' -- "$@" && readlink -f -- "$@" && exec cat -- "$@"; }}
"""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file as it is on the host; *real* is its path without symbolic links."""

    path: str
    real: str
    state: FileState


def look(host: Host, *patterns: str) -> list[tuple[int, str, ConfigFile | None]]:
    """What *patterns* (paths, or with ``*``) name, in one round trip: the pattern's index, the path, and the file.

    The file is None for what is there and is not a plain file, such as a link to nowhere. Raises Error if they change
    meanwhile, twice.
    """
    if not patterns:
        return []
    asking = ("sh", "-c", _SHOW, "show", *patterns)
    found = _shown(host.query(*asking))
    if found is None and (found := _shown(again := host.live.query(*asking))) is None:
        why = again.stderr.decode(errors="replace").strip() or "something changes these files"
        raise Error(
            f"cannot read {', '.join(patterns)}: {why}", host=host.name, code="FileUnreadable",
            hint="run the command again when that has ended",
        )  # fmt: skip
    return found


def _shown(result: Result) -> list[tuple[int, str, ConfigFile | None]] | None:
    """What _SHOW says; None where the parts do not fit, for a file was changed or removed between two of them."""
    listed, _, rest = result.stdout.partition(b"\n\n") if result.stdout[:1] != b"\n" else (b"", b"", b"")
    paths = [line.decode().split(" ", 2) for line in listed.splitlines()]
    count = sum(kind == "f" for _, kind, _ in paths)
    *lines, content = rest.split(b"\n", 2 * count) if count else [rest]
    if not result.ok or len(lines) != 2 * count:
        return None
    heads, real = [line.decode().split(" ", 2) for line in lines[:count]], [line.decode() for line in lines[count:]]
    if sum(int(size) for size, _, _ in heads) != len(content):
        return None
    found: list[tuple[int, str, ConfigFile | None]] = []
    for number, kind, path in paths:
        shown = None
        if kind == "f":
            size, mode, owner = heads.pop(0)
            shown = ConfigFile(path, real.pop(0), FileState(content[: int(size)], int(mode, 8), owner_of(owner)))
            content = content[int(size) :]
        found.append((int(number), path, shown))
    return found


def read_files(host: Host, *patterns: str) -> list[ConfigFile]:
    """The plain files that *patterns* (paths, or with ``*``) name, in their order, in one round trip."""
    return [shown for _, _, shown in look(host, *patterns) if shown is not None]


@dataclass(frozen=True, slots=True)
class Containerd:
    """The containerd of one host. *properties* are those of its unit, as systemctl names them.

    *running* is the command line of the process that runs, empty if none does.
    """

    program: str
    version: Version | None
    properties: dict[str, str]
    manager_environment: dict[str, str]
    running: tuple[str, ...] = ()

    @property
    def has_unit(self) -> bool:
        """Whether systemd knows the unit."""
        return self.properties.get("LoadState") == "loaded"

    @property
    def is_active(self) -> bool:
        """Whether it runs."""
        return self.properties.get("ActiveState") == "active"

    @property
    def config(self) -> str:
        """The main configuration file: what containerd's command line names, else the default."""
        return self._option(("config", "c"), CONFIG)

    @property
    def socket(self) -> str:
        """Where containerd listens, unless its configuration says otherwise."""
        return self._option(("address", "a"), "/run/containerd/containerd.sock")

    @property
    def _words(self) -> Sequence[str]:
        """The command line: that of the process, unless the unit has another one for the same program by now.

        systemctl joins the words by blanks and leaves variables as they are, so only the process's own are certain.
        """
        found = re.search(r"argv\[\]=(.*?) ; ", self.properties.get("ExecStart", ""))
        unit = found[1] if found else ""
        certain = "$" not in unit and '"' not in unit
        of_unit = unit.split()
        if self.running and of_unit and certain and unit != " ".join(self.running):
            same = posixpath.basename(of_unit[0]) == posixpath.basename(self.running[0])
            return of_unit if same else self.running
        return self.running or of_unit

    def _option(self, names: Sequence[str], default: str) -> str:
        """The value of an option, as Go's package flag reads it: with one dash or two, ``=`` or the next word."""
        words = self._words
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, equals, value = word.lstrip("-").partition("=")
            if 1 <= len(word) - len(word.lstrip("-")) <= 2 and name in names:
                return (value if equals else following) or default
        return default

    @property
    def environment_files(self) -> tuple[str, ...]:
        """The unit's EnvironmentFile= lines without our own, in their order."""
        names = re.findall(
            r"^EnvironmentFiles=(.*) \(ignore_errors=\w+\)$", self.properties.get("_all", ""), re.MULTILINE
        )
        return tuple(name for name in names if name != http_proxy.ENVIRONMENT)


def ask(host: Host) -> Containerd | None:
    """The host's containerd, or None if there is none."""
    text = host.query("sh", "-c", _ASK, "ask", UNIT, "/proc", _ON_THE_BUS).stdout.decode(errors="replace")
    unit, environment, program, running = (f"{text}--\n--\n--\n").split("--\n", 3)
    lines = program.splitlines()
    words = tuple(running.split("\0")[:-1])
    properties = dict(line.partition("=")[::2] for line in unit.splitlines() if "=" in line)
    # A unit has one EnvironmentFiles line for each file, so the whole text is kept beside the last of each.
    properties["_all"] = unit
    if not lines:
        return None
    version = Version.parse(" ".join(lines[1:]))
    return Containerd(lines[0], version, properties, http_proxy.parse_show(environment), words)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The files of containerd's configuration, in the order in which containerd reads them; empty: there is none.

    *leftovers* are files of ours that an interrupted run left half-written, and that a pattern in ``imports`` matches.
    """

    main: str
    files: tuple[ConfigFile, ...]
    leftovers: tuple[str, ...] = ()

    @property
    def layers(self) -> list[Layer]:
        """The files parsed. Raises Refused if one is not TOML. Without any file one that is empty."""
        if not self.files:
            return [Layer(self.main, "", {})]
        return [Layer.read(file.path, file.state.content) for file in self.files]

    def file(self, path: str) -> ConfigFile | None:
        """The file of this path, or None."""
        return next((file for file in self.files if file.path == path), None)


def configuration(host: Host, main: str, version: Version) -> Configuration:
    """Read *main* and what it imports, breadth first and each file once, as containerd does.

    Raises Refused if a file is not TOML, or if an import that is no pattern is not there: containerd would not start.
    """
    files: dict[str, ConfigFile] = {}
    leftovers: list[str] = []
    pending = [_Import(literal(main))]
    while pending:
        arguments = [(one, pattern) for one in pending for pattern in one.patterns]
        found: dict[_Import, dict[str, ConfigFile | None]] = {one: {} for one in pending}
        for number, path, shown in look(host, *(pattern for _, pattern in arguments)):
            found[arguments[number][0]][path] = shown
        pending = []
        for one, paths in found.items():
            if one.of and not one.is_pattern and not paths:
                raise Refused(
                    f"{one.of}: imports {one.path}, which does not exist; containerd does not start",
                    hint="remove it from imports, or create the file", host=host.name,
                )  # fmt: skip
            # Where Go's filepath.Glob sorts the names of each directory, a shell sorts whole paths.
            for path in sorted(paths, key=lambda path: path.split("/")):
                if path in files or {".", ".."} & set(path.split("/")):
                    continue
                shown = paths[path]
                if _LEFTOVER.fullmatch(posixpath.basename(path)):
                    leftovers.append(path)
                    continue
                if shown is None:
                    raise Refused(
                        f"{path} is not a regular file, but a directory or a dangling link",
                        hint=f"remove it{f', or what imports it in {one.of}' if one.of else ''}", host=host.name,
                    )  # fmt: skip
                files[path] = shown
                imports = Layer.read(path, shown.state.content).imports
                pending += [_Import(_absolute(path, name, version), path) for name in imports]
    return Configuration(main, tuple(files.values()), tuple(leftovers))


#: How ``Host.write`` calls a file until it is whole, and how release 0.1 did.
_LEFTOVER = re.compile(rf"\..+\.\w{{10}}{re.escape(UNFINISHED)}.*|\.new\.\w{{10}}-.+")
#: The same for a shell, below a directory.
_LEFTOVERS = (f".*.??????????{UNFINISHED}*", ".new.??????????-*")


def leftovers(host: Host, *directories: str) -> list[str]:
    """Files in *directories*, which may be patterns, that a run of ours which was killed did not finish writing."""
    patterns = [f"{directory}/{pattern}" for directory in directories for pattern in _LEFTOVERS]
    return [path for _, path, _ in look(host, *patterns) if _LEFTOVER.fullmatch(posixpath.basename(path))]


@dataclass(frozen=True, slots=True)
class _Import:
    """An import of the file *of* (empty: this is the main file itself): an absolute path, or a pattern with ``*``."""

    path: str
    of: str = ""

    @property
    def is_pattern(self) -> bool:
        return "*" in self.path

    @property
    def patterns(self) -> list[str]:
        """What a shell has to be asked for: there ``*`` names no hidden files, in Go it does."""
        if not self.is_pattern:
            return [literal(self.path)]
        found = [""]
        for part in self.path.split("/")[1:]:
            hidden = [f".{part}", *([part.lstrip("*")] if part.lstrip("*").startswith(".") else [])]
            found = [f"{path}/{one}" for path in found for one in (part, *(hidden if part.startswith("*") else []))]
        return found


def literal(path: str) -> str:
    """A pattern that names *path* alone."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


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
    found |= http_proxy.parse_show(containerd.properties.get("Environment", ""))
    for file in read_files(host, *containerd.environment_files):
        found |= http_proxy.parse_environment_file(file.state.content.decode(errors="replace"))
    return found


#: Those of the files ``$@`` that root cannot replace: their file system is read-only, or they are immutable. One that
#: is not there takes a directory that can be written to, whatever is above: on Fedora CoreOS / cannot, and /etc can.
_FIXED = """
for file; do
  place=$file
  until [ -e "$place" ]; do place=$(dirname -- "$place"); done
  { [ -w "$place" ] && { [ "$place" != "$file" ] || [ -w "$(dirname -- "$file")" ]; }; } || echo "$file"
done
"""


def fixed(host: Host, configuration: Configuration, paths: Sequence[str]) -> Iterator[Refused]:
    """Those of *paths*, which are to be changed, that cannot be."""
    real = [file.real if (file := configuration.file(path)) else path for path in paths]
    found = host.query("sh", "-c", _FIXED, "fixed", *real).text.splitlines() if real else []
    for path in found:
        yield Refused(
            f"{path} must be changed, but its file system is read-only, or it is immutable", host=host.name,
            hint=f"copy it to {CONFIG} and have {UNIT} start containerd with `--config {CONFIG}` "
            f"(`systemctl edit {UNIT}`), or make it writable",
        )  # fmt: skip


#: Runs ``$@`` in the directory in which systemd runs containerd.
FROM_ROOT = 'cd / && exec "$@"'


def dumped(host: Host, containerd: Containerd, path: str) -> str:
    """What containerd itself makes of the configuration *path*. Raises Refused with its own words if it refuses it."""
    result = host.query("sh", "-c", FROM_ROOT, "dump", containerd.program, "--config", path, "config", "dump")
    if not result.ok:
        # Before its reason come lines of its log, which say the same in other words.
        said = result.stderr.decode(errors="replace").strip().rpartition("\n")[2].removeprefix("containerd: ")
        raise Refused(
            f"{path}: containerd rejects it: {said}", host=host.name, hint="fix the file and run the command again"
        )
    return result.stdout.decode(errors="replace")


def problems(host: Host, shown: Containerd | None) -> Iterator[str]:
    """Everything about the installation that keeps containerd from using the mirrors: one sentence each."""
    if shown is None:
        others = host.query("sh", "-c", _OTHERS, "others", "/usr/local/bin", "/usr/bin", "/opt/rke2/bin").text.split()
        if "k3s" in others or "rke2" in others:
            yield "this node runs k3s or RKE2, which embed containerd: configure registries.yaml and skip this phase"
        elif "crio" in others:
            yield (
                "this node runs CRI-O, but only containerd is supported: install containerd, or add the registry to "
                "/etc/containers/registries.conf.d and skip this phase (--skip-phases containerd)"
            )
        elif others:
            yield (
                f"containerd is not installed, {' and '.join(others)} is, which kubeadm does not use: install "
                "containerd (package containerd or containerd.io), then run the command again"
            )
        else:
            yield "containerd is not installed: install containerd or containerd.io, then run the command again"
        return
    states = host.query("systemctl", "is-active", "--", *(unit for _, unit in _EMBEDDED)).text.split()
    runs = [state in ("active", "reloading") for state in states]
    for name in dict.fromkeys(name for (name, _), one in zip(_EMBEDDED, runs, strict=False) if one):
        yield (
            f"this node runs {name}, whose pods use a containerd of its own and not {UNIT}: configure registries.yaml "
            f"(`kubeadm-registry mirrors print --for {name}`), and leave the node out or skip this phase"
        )
    if shown.version is None:
        yield f"{shown.program} --version prints no version: containerd 1.6 or later is needed"
    elif shown.version < Version(1, 6):
        yield f"containerd {shown.version} is too old for hosts.toml with kubeadm: 1.6 or later is needed"
    if not shown.has_unit:
        yield f"{shown.program} exists, but systemd has no {UNIT}: install the unit, then run the command again"
    elif not shown.is_active:
        yield f"{UNIT} is not running: see `journalctl -u {UNIT}`, then run `systemctl enable --now {UNIT}`"


#: What brings a containerd of its own, and its units.
_EMBEDDED = [(name, f"{name}{kind}.service") for name in ("k3s", "rke2") for kind in ("", "-server", "-agent")]
#: Which other container runtimes are in the directories ``$@``.
_OTHERS = """
for name in k3s rke2 dockerd crio; do
  for directory in "$@"; do
    [ -x "$directory/$name" ] && echo "$name" && break
  done
done
:
"""


def kills_containers(shown: Containerd) -> str:
    """The KillMode= with which a restart of containerd ends its containers; empty: they go on."""
    mode = shown.properties.get("KillMode", "process")
    return f"KillMode={mode}" if shown.has_unit and mode not in ("process", "none") else ""


def notices(host: Host, shown: Containerd) -> Iterator[str]:
    """What the reader should know about the unit, though nothing keeps us from going on."""
    if mode := kills_containers(shown):
        yield f"{UNIT} has {mode}: a restart of containerd kills the containers on {host.name}"
