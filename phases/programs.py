"""The programs: uploaded from the bundle to their final path, and each started once before it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubeadm_registry.bundle import Program, version_command
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import compatibility, programs, running
from kubeadm_registry.components.compatibility import AGENT, TOOL
from kubeadm_registry.engine.changes import Directory, Steps
from kubeadm_registry.engine.phase import Check, Phase
from kubeadm_registry.errors import Error
from kubeadm_registry.paths import OPT, PROGRAMS
from kubeadm_registry.phases.records import RECORDS
from kubeadm_registry.transport.host import Host


def install(cluster: Cluster, host: Host) -> Steps:
    """Upload what is not there yet, then start each program once to see that it can."""
    yield Directory(OPT)
    yield Directory(PROGRAMS)
    yield from programs.install(cluster, host)
    executables = tuple(program.executable for program in cluster.programs.values())
    for program in cluster.programs.values():
        yield Starts(program, executables)


#: Which of the programs ``$2``... are there, a line each; then what runs below ``$1``. Processes may end meanwhile,
#: which is no error.
_RUNS = """
below=$1; shift
for program; do [ ! -x "$program" ] || echo "$program"; done
echo "running:"
find /proc -mindepth 2 -maxdepth 2 -name exe -lname "$below/*" -printf '%l\\n' 2>/dev/null || :
"""


@dataclass(frozen=True, slots=True)
class Starts:
    """The program starts from its final place: right architecture, C library, CPU and mount options.

    *executables*: of all programs, so that one question serves for all.
    """

    program: Program
    executables: tuple[str, ...]

    @property
    def title(self) -> str:
        """What apply does."""
        return f"check that {self.program.name} starts"

    def diff(self, host: Host) -> str | None:
        """Why it does not start. Raises Error, for nothing here could mend it."""
        said = host.query("sh", "-c", _RUNS, "runs", PROGRAMS, *self.executables).text
        there, _, running = said.partition("running:")
        if self.program.executable not in there.splitlines():
            return f"{self.program.executable} --version"
        if f"{self.program.prefix}/" in running:
            return None  # as a service, so it has started
        flaw = start(self.program, host)
        if flaw is not None:
            raise Error(flaw, host=host.name, code="ProgramDoesNotStart", hint=HINT)
        return None

    def apply(self, host: Host) -> None:
        """Nothing: diff has started it."""


HINT = (
    "create a bundle for this host if architecture or C library are wrong; remount /opt "
    "without noexec if permission was denied"
)


def start(program: Program, host: Host) -> str | None:
    """Start *program* with the argument that prints its version; None, or why it failed."""
    result = host.query(program.executable, *version_command(program)[1:], timeout=20)
    if result.ok:
        return None
    words = (result.stderr or result.stdout).decode(errors="replace").strip().splitlines()
    return f"{program.name} does not start: {words[-1] if words else f'status {result.code}'}"


def beside_those_here(cluster: Cluster, host: Host) -> Iterator[str]:
    """The programs in the bundle may run beside those of this node, as some nodes get theirs before others.

    Whether the bundle is that of this release is for ``upgrade`` to say.
    """
    if cluster.bundle is not None:
        runs = running.versions(cluster, host)
        wanted = {name: version for name, version in running.wanted(cluster).items() if name != TOOL}
        yield from compatibility.refusals({host.name: runs}, running.relevant(wanted, runs), [host.name])


BESIDE = Check("Versions", beside_those_here, mandatory=True)


def not_older(cluster: Cluster, host: Host) -> Iterator[str]:
    """The bundle has no older version of a program than this node runs: `upgrade` goes back, one node at a time."""
    if cluster.bundle is not None:
        runs, wanted = running.versions(cluster, host), running.wanted(cluster)
        older = [
            f"{name} {wanted[name]} and not {runs[name]}"
            for name in sorted(cluster.programs.keys() & runs)
            if compatibility.is_older(wanted[name], runs[name])
        ]
        if older:
            yield (
                f"the bundle has older programs than this node runs ({', '.join(older)}): pass the newer one with "
                "--bundle (without it ./kubeadm-registry-bundle.tar is taken: move an old one away), or go back with "
                "`upgrade`"
            )


OLDER = Check("ProgramsOlder", not_older)

PROGRAMS_PHASE = Phase(
    "programs", "Upload the programs and check that each one starts", install, checks=(RECORDS, BESIDE, OLDER)
)


def uploaded(cluster: Cluster, host: Host) -> Iterator[str]:
    """The programs that a node has recorded are on this one: no upload was interrupted."""
    lacking = [one.name for one in cluster.programs.values() if programs.Installed(one, None).diff(host) is not None]
    if lacking:
        yield (
            f"it lacks {', '.join(sorted(lacking))} in the version that another node has: an upload of programs was "
            "interrupted; run `upgrade` or `init` with that bundle first"
        )


UPLOADED = Check("ProgramsUploaded", uploaded, mandatory=True)
"""Where a run takes the programs of the record and uploads none: a unit would name a program that is not there."""


def in_use(cluster: Cluster, host: Host) -> Iterator[str]:
    """A node runs the programs that are recorded: none was uploaded for an upgrade that has not begun, or not ended."""
    runs = running.versions(cluster, host)
    other = {name: new for name, new in running.wanted(cluster).items() if name != AGENT and runs.get(name, new) != new}
    if other:
        told = ", ".join(f"{name} {runs[name]} and not {new}" for name, new in sorted(other.items()))
        yield (
            f"it runs {told}, which was uploaded: run `upgrade` with that bundle first, or `preflight --bundle FILE` "
            "with the previous one"
        )


IN_USE = Check("ProgramsInUse", in_use, mandatory=True)
"""Where a run restarts services with the programs of the record: it would be an upgrade without any of its checks."""
