"""What can go wrong. Each fault is a function of the world; who is hit may be named by its part in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.agent.moving import Request
from tests.simulation.agent import Roster
from tests.simulation.host import Host
from tests.simulation.process import Process
from tests.simulation.world import World


@dataclass(frozen=True)
class Fault:
    """*what* happens after *at* seconds to *who*: a name, or writer, other, others, holder, any, all."""

    at: float
    what: str
    who: str = ""
    value: Any = None


Deed = Callable[[World, Host, Any], None]
DEEDS: dict[str, Deed] = {}


def deed(function: Deed) -> Deed:
    """Make *function* a fault by its name."""
    DEEDS[function.__name__.strip("_")] = function
    return function


def happen(world: World, fault: Fault) -> None:
    """Do what *fault* says."""
    for host in targets(world, fault.who):
        world.say(host.name, f"FAULT {fault.what} {'' if fault.value is None else fault.value}")
        DEEDS[fault.what](world, host, fault.value)


def targets(world: World, who: str) -> list[Host]:
    """Who is meant, as things are now."""
    hosts = [host for host in world.hosts.values() if host.used]
    if who == "all":
        return hosts
    if who in world.hosts:
        return [world.hosts[who]]
    writer = world.writing()
    if who == "writer" and writer is not None:
        return [writer]
    if who == "holder":
        hosts = [host for host in hosts if host.vip] or hosts
    if who == "others":
        return [host for host in hosts if host is not writer]
    if who == "other" and len(hosts) > 1:
        hosts = [host for host in hosts if host is not writer]
    return [world.random.choice(hosts)]


# ---- the network ---------------------------------------------------------------------------------------------------


@deed
def isolate(world: World, host: Host, value: str) -> None:
    """*value*: both, out (nobody hears it) or in (it hears nobody)."""
    for other in world.hosts:
        if other != host.name:
            if value in ("both", "out"):
                world.network.cut(host.name, other)
            if value in ("both", "in"):
                world.network.cut(other, host.name)


@deed
def pair(world: World, host: Host, value: str) -> None:
    """Cut it from one other server, in both directions or one."""
    other = world.random.choice([one for one in world.hosts if one != host.name])
    world.say(host.name, f"      cut from {other}: {value}")
    if value in ("both", "out"):
        world.network.cut(host.name, other)
    if value in ("both", "in"):
        world.network.cut(other, host.name)


@deed
def split(world: World, host: Host, value: int) -> None:
    """It and *value* more on one side, the rest on the other."""
    rest = [one for one in world.hosts if one != host.name]
    world.random.shuffle(rest)
    _split(world, {host.name, *rest[:value]})


@deed
def split_off(world: World, host: Host, value: str) -> None:
    """The servers of *value*, one letter each, on one side, the rest on the other."""
    _split(world, set(value))


def _split(world: World, side: set[str]) -> None:
    for one in world.hosts:
        for other in world.hosts:
            if (one in side) is not (other in side):
                world.network.cut(one, other)


@deed
def no_adverts(world: World, host: Host, value: None) -> None:
    """It gets no adverts of VRRP any more, and all else."""
    world.network.filtered.add(host.name)


@deed
def heal(world: World, host: Host, value: None) -> None:
    """All hear all."""
    world.network.heal()


@deed
def weather(world: World, host: Host, value: tuple[float, float, float, float]) -> None:
    """Loss, doubled and late packets as shares; how late in seconds."""
    now = world.network.weather
    now.loss, now.doubled, now.late, now.lateness = value


@deed
def slow_to(world: World, host: Host, value: tuple[float, float]) -> None:
    """What others send to it takes so many seconds, and what it sends does not."""
    for other in world.hosts:
        world.network.slow[other, host.name] = value


# ---- processes -----------------------------------------------------------------------------------------------------


def _stop(world: World, process: Process | None, seconds: float) -> None:
    if process is not None and process.alive:
        process.stop()
        world.timeline.after(seconds, process.go_on)


@deed
def stall(world: World, host: Host, value: float) -> None:
    """The agent is not run for *value* seconds."""
    _stop(world, host.agent.process, value)


@deed
def stall_within(world: World, host: Host, value: tuple[str, float]) -> None:
    """The agent is not run, and it hits the next round in its midst."""
    world.stalls[host.name, value[0]] = value[1]


@deed
def still_within(world: World, host: Host, value: tuple[str, float]) -> None:
    """No process is run, and it hits the agent in the midst of its next round."""
    world.stalls[host.name, value[0]] = -value[1]


@deed
def still(world: World, host: Host, value: float) -> None:
    """No process of the host is run for *value* seconds."""
    host.stand_still(True)
    world.timeline.after(value, host.stand_still, False)


@deed
def pause(world: World, host: Host, value: float) -> None:
    """The virtual machine is paused, its clocks as well."""
    host.pause(True)
    world.timeline.after(value, host.pause, False)


@deed
def crash_agent(world: World, host: Host, value: None) -> None:
    host.agent.die()


@deed
def stop_agent(world: World, host: Host, value: None) -> None:
    """systemctl restart: the agent leaves in good order."""
    host.agent.restart()


@deed
def reload_agent(world: World, host: Host, value: None) -> None:
    host.agent.reload()


@deed
def crash_zot(world: World, host: Host, value: None) -> None:
    if host.zot.process is not None:
        host.zot.ended(host.zot.process)


@deed
def stop_zot(world: World, host: Host, value: float) -> None:
    """zot stands still, and then goes on with what it had in hand."""
    _stop(world, host.zot.process, value)


@deed
def zot_stays(world: World, host: Host, value: float) -> None:
    """A killed zot is gone only after so long."""
    host.zot.stays = value


@deed
def crash_haproxy(world: World, host: Host, value: int) -> None:
    host.haproxies[value].crash()


@deed
def reload_haproxy(world: World, host: Host, value: int) -> None:
    host.haproxies[value].reload()


@deed
def stop_haproxy(world: World, host: Host, value: tuple[int, float]) -> None:
    _stop(world, host.haproxies[value[0]].worker, value[1])


@deed
def crash_keepalived(world: World, host: Host, value: None) -> None:
    host.keepalived.crash()


@deed
def stop_keepalived(world: World, host: Host, value: float) -> None:
    _stop(world, host.keepalived.process, value)


@deed
def slow_close(world: World, host: Host, value: float) -> None:
    """--close takes up to *value* seconds."""
    host.agent.close_seconds = (value / 2, value)


@deed
def slow_disk(world: World, host: Host, value: float) -> None:
    """A sync takes up to *value* seconds."""
    host.disk.delay = (0.0, value)


@deed
def flush(world: World, host: Host, value: None) -> None:
    """The packet filter's rules are gone."""
    host.timer.there = False
    host.timer.disarm()


@deed
def unflush(world: World, host: Host, value: None) -> None:
    """They are back, with empty sets."""
    host.timer.there = True


# ---- hosts ---------------------------------------------------------------------------------------------------------


@deed
def power(world: World, host: Host, value: tuple[float, float]) -> None:
    """Power is lost, and back after so long, with the wall clock wrong by so much."""
    host.power_off()
    host.wall_offset = value[1]
    world.timeline.after(value[0], host.boot)


@deed
def reboot(world: World, host: Host, value: tuple[float, float]) -> None:
    """The same in good order."""
    host.power_off(clean=True)
    host.wall_offset = value[1]
    world.timeline.after(value[0], host.boot)


@deed
def wall(world: World, host: Host, value: float) -> None:
    """The wall clock is set wrong by so much."""
    host.wall_offset = value


@deed
def rate(world: World, host: Host, value: float) -> None:
    """Its clocks run at this rate."""
    host.set_rate(value)


@deed
def vip(world: World, host: Host, value: bool) -> None:
    """The VIP comes or goes, whatever keepalived would do."""
    host.address(value)


@deed
def move(world: World, host: Host, value: tuple[float, float, float]) -> None:
    """The VIP is to move to it, as planned: each other server is asked, with a chance, for so many seconds.

    *value*: seconds, chance, and seconds for which writes are still in flight at the others.
    """
    seconds, chance, busy = value
    for other in world.hosts.values():
        if other is not host and other.on and world.random.random() < chance:
            other.move = Request(host.name), other.seconds() + seconds
            other.busy_until = world.timeline.now + busy


@deed
def yields(world: World, host: Host, value: tuple[float, float]) -> None:
    """As the one writer it is to give up the lease, as planned, and to keep the VIP.

    *value*: for how many seconds, and seconds for which writes are still in flight there.
    """
    seconds, busy = value
    host.move = Request(yields=True), host.seconds() + seconds
    host.busy_until = world.timeline.now + busy


@deed
def members(world: World, host: Host, value: Roster) -> None:
    """It gets another list of members, and its agent takes it up."""
    host.change_members(value)


@deed
def settle(world: World, host: Host, value: Roster) -> None:
    """The list before is dropped, which the command does only once every agent of the new one is bound by that."""
    if bound(world, value):
        host.change_members(value)


def bound(world: World, roster: Roster) -> bool:
    """Whether every agent of *roster* has promised on its disk to vote by no earlier list."""
    return min(world.hosts[name].disk.durable.generation for name in roster.names) >= roster.generation
