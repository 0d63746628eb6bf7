"""What can befall a server, as values: how it happens, how it is undone, and what readers may notice of it."""

from __future__ import annotations

import enum
import itertools
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kubeadm_registry import paths
from kubeadm_registry.agent.presence import BORNE
from tests.lab.host import Host
from tests.lab.reading import Reading
from tests.lab.registry import Registry, repeat

FIT = paths.FIT
BLOCKS = "/var/lib/kubeadm-registry/garage/data"
MOST_TURNS = 3
HAPROXIES = tuple(f"{paths.PREFIX}-haproxy@{number}.service" for number in (1, 2))


class Lost(enum.Enum):
    """Which requests may fail through a fault. How many these are, is the machine's speed."""

    ANY = "those that were begun before the gap ended"
    BEGUN = "those that were begun before it struck"
    BODIES = "those whose body was under way when it struck: nobody but their client can ask for the rest"

    def allows(self, run: Reading) -> bool:
        """Whether no others failed in *run*."""
        if self is Lost.ANY:
            return True
        return all(one.begin <= run.struck and (one.cut_off or self is Lost.BEGUN) for one in run.failed)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a fault may cost those who read through the VIP: seconds without a good read, and failed requests."""

    worst: float
    median: float | None = None
    """Of several runs; None: only the worst counts."""
    lost: Lost = Lost.ANY

    def kept(self, runs: Sequence[Reading]) -> bool:
        """Whether *runs* cost no more.

        One may where the others are here only because of it (see `turns`): a machine of CI stands still for seconds
        now and then. Where `repeat` says how many there are, none may. Wrong bytes are never borne.
        """
        spared = 1 if repeat() < MOST_TURNS <= len(runs) else 0
        return (
            sum(self.exceeded(run) for run in runs) <= spared
            and (self.median is None or statistics.median_high(run.gap for run in runs) <= self.median)
            and not any(run.wrong for run in runs)
        )

    def exceeded(self, run: Reading) -> bool:
        """Whether this one run cost more than the worst may."""
        return run.gap > self.worst or bool(run.wrong) or not self.lost.allows(run)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one server."""

    name: str
    strike: Callable[[Registry, Host], object]
    heal: Callable[[Registry, Host], object]
    bound: Bound
    on: str = "holder"
    """Whom it befalls: the ``holder`` of the VIP, or ``another`` server."""
    moves: bool = False
    """Whether the VIP has to leave that server."""
    watched: float = 2.5
    """Seconds to go on reading after it struck."""

    def __str__(self) -> str:
        return self.name


def turns(enough: Callable[[], bool]) -> Iterator[int]:
    """The numbers of a fault's repetitions: as `repeat` says, and to three until *enough*.

    One figure is no median, and one long gap may be the machine's own: see `Reading.pressure`.
    """
    for turn in itertools.count():
        if turn >= repeat() and (turn >= MOST_TURNS or enough()):
            return
        yield turn


def nothing(_: Registry, __: Host) -> None:
    """It heals by itself, as systemd or the agent starts what died."""


def killed(service: str) -> Callable[[Registry, Host], None]:
    """SIGKILL all processes of a service."""

    def strike(registry: Registry, host: Host) -> None:
        host.kill(registry.unit(service), signal.SIGKILL)

    return strike


def stopped(service: str) -> Callable[[Registry, Host], None]:
    """SIGSTOP all processes of a service: alive, and deaf."""

    def strike(registry: Registry, host: Host) -> None:
        host.kill(registry.unit(service), signal.SIGSTOP)

    return strike


def proxies(sent: signal.Signals, count: int) -> Callable[[Registry, Host], None]:
    """Send a signal to that many of the two proxy processes."""

    def strike(_: Registry, host: Host) -> None:
        units = HAPROXIES[:count]
        host.sh("systemctl", "kill", "--kill-whom=all", f"--signal={sent.name}", *units)

    return strike


def going_on(*services: str) -> Callable[[Registry, Host], None]:
    """Let stopped processes go on; those that the agent has replaced meanwhile are not disturbed by it."""

    def heal(registry: Registry, host: Host) -> None:
        units = [registry.unit(service) for service in services] or list(HAPROXIES)
        host.sh("systemctl", "kill", "--kill-whom=all", "--signal=SIGCONT", *units, check=False)

    return heal


def power_cut(_: Registry, host: Host) -> None:
    """The power is gone."""
    host.power_cut()


def power_on(_: Registry, host: Host) -> None:
    """It boots again."""
    host.power_on()


def silent_cut(_: Registry, host: Host) -> None:
    """The switch's port dies; the server keeps its carrier."""
    host.cut(silent=True)


def cable_out(_: Registry, host: Host) -> None:
    """The cable is pulled out."""
    host.cut()


def plugged_in(_: Registry, host: Host) -> None:
    """The cable is in, the port works."""
    host.heal()


def unreadable(_: Registry, host: Host) -> None:
    """Garage may no longer look into the directory with its blocks."""
    host.sh("chmod", "000", BLOCKS)


def readable(_: Registry, host: Host) -> None:
    """Garage may again."""
    host.sh("chmod", "700", BLOCKS)


def agent_kept_down(registry: Registry, host: Host) -> None:
    """The agent is killed and may not start again."""
    host.keep_down(registry.unit("agent"))
    host.kill(registry.unit("agent"))


def agent_back(registry: Registry, host: Host) -> None:
    """The agent may start again."""
    host.let_up(registry.unit("agent"))


def fit_deleted(_: Registry, host: Host) -> None:
    """Nobody tells keepalived that this server is fit, for the agent is stopped and its file deleted."""
    host.sh("rm", "-f", FIT)


def fit_emptied(_: Registry, host: Host) -> None:
    """The file is empty, as after a full disk."""
    host.sh("truncate", "--size=0", FIT)


def host_hangs(_: Registry, host: Host) -> None:
    """Nothing runs on it any more, and its kernel answers: as while its disk does not, or in a debugger."""
    host.pause()


def host_goes_on(_: Registry, host: Host) -> None:
    """All of it runs again."""
    host.resume()


NO_GAP = Bound(worst=0.5, lost=Lost.BODIES)
DEAD_HOST = Bound(worst=1.0, median=0.6)
HUNG = Bound(worst=1.0)
#: The others bear the silence of its agent until systemd would have ended an agent that hangs (presence.BORNE).
HANGING_HOST = Bound(worst=BORNE + 1.5)

FAULTS = (
    Fault("power-cut", power_cut, power_on, DEAD_HOST, moves=True),
    Fault("silent-cut", silent_cut, plugged_in, DEAD_HOST, moves=True),
    Fault("cable-out", cable_out, plugged_in, DEAD_HOST, moves=True),
    Fault("host-hangs", host_hangs, host_goes_on, HANGING_HOST, moves=True, watched=BORNE + 2.5),
    Fault("host-hangs-elsewhere", host_hangs, host_goes_on, HANGING_HOST, on="another", watched=BORNE + 2.5),
    Fault("kill-frontend", killed("frontend"), nothing, NO_GAP),
    Fault("kill-garage", killed("garage"), nothing, NO_GAP),
    Fault("kill-one-proxy", proxies(signal.SIGKILL, 1), nothing, Bound(worst=1.0, lost=Lost.BEGUN)),
    Fault("kill-all-proxies", proxies(signal.SIGKILL, 2), nothing, Bound(worst=1.0)),
    Fault("kill-keepalived", killed("keepalived"), nothing, HUNG),
    Fault("stop-frontend", stopped("frontend"), going_on("frontend"), HUNG),
    Fault("stop-one-proxy", proxies(signal.SIGSTOP, 1), going_on(), HUNG),
    Fault("stop-all-proxies", proxies(signal.SIGSTOP, 2), going_on(), HUNG, moves=True),
    Fault("stop-garage", stopped("garage"), going_on("garage"), HUNG),
    Fault("stop-garage-elsewhere", stopped("garage"), going_on("garage"), HUNG, on="another"),
    Fault("data-unreadable", unreadable, readable, Bound(worst=2.0)),
    Fault("agent-kept-down", agent_kept_down, agent_back, HUNG, moves=True),
    Fault("fit-deleted", fit_deleted, nothing, HUNG, moves=True),
    Fault("fit-emptied", fit_emptied, nothing, HUNG, moves=True),
)
