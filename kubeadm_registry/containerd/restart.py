"""containerd is restarted only when the process that runs was started before a change of ours.

Before each change of a file that containerd reads only when it starts, the invocation that runs at that moment is
noted (systemd gives each start of a unit another identifier). A restart is owed as long as that very invocation still
runs: so a run that died between the change and the restart makes up for it, whoever restarts containerd or the server
in between has done it for us, and a containerd that needed no change is left alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.containerd.survey import UNIT, Containerd
from kubeadm_registry.engine.changes import last_words
from kubeadm_registry.errors import CommandFailed, Error
from kubeadm_registry.transport.host import Host

#: Gone after a boot, which starts containerd anew.
OWED = f"{paths.RUN}/containerd-restart"

#: ``$1`` unit, ``$2`` where to note. Fails where /run is full: an empty note would say that no restart is owed.
_MARK = """
set -e
mkdir -p -m 755 -- "${2%/*}"
running=$(systemctl show --property=InvocationID --value -- "$1")
printf '%s\\n' "$running" > "$2.new"
mv -f -- "$2.new" "$2"
"""

#: ``$1`` unit, ``$2`` where it is noted. Says yes if the noted invocation runs.
_IS_OWED = """
[ -s "$2" ] || exit 0
[ "$(systemctl show --property=InvocationID --value -- "$1")" = "$(cat -- "$2")" ] || exit 0
[ "$(systemctl show --property=ActiveState --value -- "$1")" = active ] || exit 0
echo yes
"""


def mark(host: Host) -> None:
    """Note that the containerd that runs now has to be restarted. Call it before and after a change.

    Before, so that a run that dies is made up for; after, since somebody may have restarted it in between.
    """
    host.run("sh", "-c", _MARK, "mark", UNIT, OWED)


@dataclass(frozen=True, slots=True)
class Restart:
    """containerd has been started after the last change of ours, and its CRI plugin runs.

    *turn* is held while it restarts.
    """

    containerd: Containerd
    turn: AbstractContextManager[object] = field(default_factory=nullcontext, compare=False, repr=False)
    timeout: float = 120

    @property
    def title(self) -> str:
        """What apply does."""
        return f"restart {UNIT}"

    def diff(self, host: Host) -> str | None:
        """That a restart is owed, or None."""
        owed = host.query("sh", "-c", _IS_OWED, "owed", UNIT, OWED).text == "yes"
        return f"{UNIT}: restarts, because it runs with an earlier configuration" if owed else None

    def apply(self, host: Host) -> None:
        """Restart it; its unit is of type notify, so systemd waits until it serves. Containers go on."""
        with self.turn:
            self._restart(host)

    def _restart(self, host: Host) -> None:
        host.run("systemctl", "daemon-reload")
        try:
            host.run("systemctl", "restart", "--", UNIT, timeout=self.timeout)
        except CommandFailed as error:
            raise Error(
                f"systemctl restart {UNIT} failed: {last_words(host, UNIT)}",
                host=host.name, code="ContainerdRestart", hint=f"see: journalctl -u {UNIT}",
            ) from error  # fmt: skip
        if failed := self._failed_plugins(host):
            raise Error(
                f"containerd runs, but its plugin {', '.join(failed)} does not: {last_words(host, UNIT)}",
                host=host.name, code="ContainerdPlugin", hint=f"see: journalctl -u {UNIT}, and `ctr plugins ls -d`",
            )  # fmt: skip
        host.run("rm", "-f", "--", OWED)

    def _failed_plugins(self, host: Host) -> list[str]:
        """CRI plugins whose start failed: containerd goes on without them. Without ctr nobody can tell."""
        client = f"{self.containerd.program.rpartition('/')[0]}/ctr"
        listed = host.query(client, "--address", self.containerd.socket, "plugins", "ls")
        rows = (line.split() for line in listed.text.splitlines())
        return [
            row[1] for row in rows if len(row) >= 3 and "cri" in f"{row[0]}.{row[1]}".split(".") and row[-1] == "error"
        ]
