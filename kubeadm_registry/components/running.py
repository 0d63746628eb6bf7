"""The versions that run on a node, whatever has been uploaded to it since."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from kubeadm_registry import __version__, paths
from kubeadm_registry.agent import document
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import retention
from kubeadm_registry.components.compatibility import AGENT
from kubeadm_registry.components.services import services
from kubeadm_registry.engine.changes import unit_path
from kubeadm_registry.transport.host import Host

#: For each pair of unit and file ``$@`` a line: the program that the unit runs, else the one that its file names.
_ASK = """
while [ $# -gt 1 ]; do
  pid=$(systemctl show --property=MainPID --value -- "$1")
  exe=
  [ "${pid:-0}" = 0 ] || exe=$(readlink -- "/proc/$pid/exe") || :
  [ -n "$exe" ] || exe=$(sed -n 's/^ExecStart=[-+]*\\([^ ]*\\).*/\\1/p' "$2" 2>/dev/null | head -n 1)
  echo "$1 $exe"
  shift 2
done
"""
#: A path below the directory of a program: its name, its version as a path has it, its architecture, its build. That of
#: a process has no symbolic links in it, and /opt may be one.
_PATH = re.compile(
    rf"{re.escape(paths.PROGRAMS.removeprefix('/opt'))}/([a-z0-9-]+)/(.+)-(?:amd64|arm64)-[0-9a-f]{{8}}/"
)


def versions(cluster: Cluster, host: Host) -> dict[str, str]:
    """The version of each program that *host* runs, by its name; without those that run nowhere there."""
    units = [one.unit for one in services(cluster.spec) if one.program] + [retention.TEMPLATE]
    pairs = [word for unit in units for word in (unit, unit_path(unit))]
    said = host.query("sh", "-c", _ASK, "running", *pairs).text.splitlines()
    found = {}
    for line in said:
        if (path := _PATH.search(line)) is not None:
            found[path[1]] = path[2]
    content = host.read(paths.AGENT_STATE)
    state = None if content is None else document.read(content.decode(errors="replace"))
    if state is not None and state.get("version"):
        found[AGENT] = state["version"]
    return found


def wanted(cluster: Cluster) -> dict[str, str]:
    """The version of each program that the nodes get, as a path has it, and of the agent, which this release brings."""
    found = {}
    for name, program in cluster.programs.items():
        path = _PATH.search(f"{program.prefix}/")
        found[name] = path[2] if path is not None else program.version
    return {**found, AGENT: __version__}


def relevant(wanted: Mapping[str, str], running: Collection[str]) -> dict[str, str]:
    """Those of the *wanted* that a node with these *running* ones has a use for: Python may be the host's own."""
    return {name: version for name, version in wanted.items() if name != "python" or name in running}
