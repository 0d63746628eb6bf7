"""The models by themselves, and that a seed is a whole schedule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from kubeadm_registry.agent.model import HardState
from kubeadm_registry.agent.steering import Steering
from tests.simulation import schedule
from tests.simulation.__main__ import main
from tests.simulation.agent import AgentProcess, Roster
from tests.simulation.disk import Disk
from tests.simulation.faults import Fault, happen
from tests.simulation.host import Host
from tests.simulation.kernel import JIFFY, Clock, Timer
from tests.simulation.network import Network
from tests.simulation.process import Ended
from tests.simulation.run import run
from tests.simulation.schedule import THREE
from tests.simulation.timeline import Timeline
from tests.simulation.world import World, new_world


@dataclass
class Seen:
    """What happened, in order."""

    what: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.what.append(text)


def test_events_come_in_the_order_of_their_times() -> None:
    timeline, seen = Timeline(), Seen()
    timeline.at(2.0, seen.note, "late")
    timeline.at(1.0, seen.note, "first")
    timeline.at(1.0, seen.note, "second")
    timeline.run(1.5)
    assert (seen.what, timeline.now) == (["first", "second"], 1.5)
    timeline.run(3.0)
    assert seen.what[-1] == "late"


def test_others_go_on_while_one_stands_still_within_an_event() -> None:
    timeline, seen = Timeline(), Seen()

    def stand_still() -> None:
        seen.note("begins")
        timeline.run(timeline.now + 1.0)
        seen.note(f"ends at {timeline.now}")

    timeline.at(1.0, stand_still)
    timeline.at(1.5, seen.note, "another")
    timeline.run(3.0)
    assert seen.what == ["begins", "another", "ends at 2.0"]
    assert timeline.now == 3.0


def test_a_timer_lasts_from_its_renewal_and_not_without_a_ticket() -> None:
    timer = Timer(lasts=2.0, ticket_lasts=0.2)
    assert timer.passes(0.0), "a standby is not cut"
    assert not timer.renew(10.0)
    assert timer.take_ticket(10.0)
    assert timer.renew(10.2)
    assert timer.passes(12.2)
    assert not timer.passes(12.2 + JIFFY)
    assert not timer.renew(12.5), "the ticket is old"
    timer.disarm()
    assert timer.passes(20.0)
    timer.there = False
    assert not timer.take_ticket(21.0)
    assert not timer.renew(21.0)


def test_the_clocks_of_a_paused_machine_stand() -> None:
    clock = Clock(0.0, 1.01, 5.0)
    assert clock.at(10.0) == pytest.approx(15.1)
    clock.pause(10.0, True)
    assert clock.at(20.0) == pytest.approx(15.1)
    clock.pause(20.0, False)
    assert clock.at(30.0) == pytest.approx(25.2)


def test_a_power_cut_takes_what_was_not_synced_and_nothing_else() -> None:
    results = set()
    for seed in range(30):
        disk = Disk(Random(seed))
        disk.write(HardState(1, 5))
        disk.sync()
        disk.write(HardState(1, 7))
        assert disk.cached == HardState(1, 7)
        disk.lose_power()
        results.add(disk.cached)
    assert results == {HardState(1, 5), HardState(1, 7)}


def test_a_network_is_cut_in_one_direction_only() -> None:
    timeline, seen = Timeline(), Seen()
    network = Network(timeline, Random(0))
    network.cut("a", "b")
    network.send("a", "b", seen.note, "a to b")
    network.send("b", "a", seen.note, "b to a")
    network.weather.doubled = 1.0
    network.send("b", "a", seen.note, "twice")
    network.weather.loss = 1.0
    network.send("b", "a", seen.note, "lost")
    timeline.run(1.0)
    assert sorted(seen.what) == ["b to a", "twice", "twice"]


def test_three_servers_that_are_switched_on_have_one_address_and_one_writer() -> None:
    world = World(7, THREE, Roster(THREE))
    world.timeline.run(8.0)
    assert [host.name for host in world.hosts.values() if host.vip] == [host.name for host in world.writers()]
    assert len(world.writers()) == 1
    assert world.counts.openings == 1


def one_writes() -> tuple[World, Host, AgentProcess]:
    """A world, the server that writes in it, and the agent there."""
    world = new_world(THREE, Roster(THREE), cold=False)
    writer = world.writing()
    assert writer is not None
    process = writer.agent.process
    assert process is not None
    return world, writer, process


def test_a_process_that_is_killed_in_the_midst_of_a_round_does_no_more() -> None:
    world, writer, process = one_writes()
    world.stalls[writer.name, "renew"] = 1.0
    world.timeline.after(0.5, writer.agent.die)
    renewed = writer.timer.lease
    with pytest.raises(Ended):
        process.steering.step(process.observe)
    assert not process.alive
    assert writer.timer.lease <= renewed


def test_an_agent_that_is_killed_while_it_leaves_says_no_goodbye() -> None:
    world, writer, process = one_writes()
    world.stalls[writer.name, "route"] = 1.0
    world.timeline.after(0.5, writer.agent.die)
    writer.agent.restart()
    assert not process.alive
    assert not world.stalls
    world.timeline.run(world.timeline.now + 5)
    assert writer.agent.process is not process


def test_a_watchdog_ends_an_agent_that_is_not_run() -> None:
    world, writer, before = one_writes()
    before.stop()
    world.timeline.run(world.timeline.now + 2.5)
    assert not before.alive
    assert not writer.zot.could_write


def test_a_node_that_gets_no_adverts_gives_way_and_follows_a_holder_that_dies() -> None:
    world = new_world(THREE, Roster(THREE), cold=False)
    holder = next(host for host in world.hosts.values() if host.vip)
    deaf, last = (host for host in world.hosts.values() if host is not holder)
    world.network.filtered.add(deaf.name)
    world.timeline.run(world.timeline.now + 1)
    assert deaf.vip and holder.vip, "keepalived takes it for dead"
    world.timeline.run(world.timeline.now + 2.5)
    assert [host for host in world.hosts.values() if host.vip] == [holder]
    world.timeline.run(world.timeline.now + 30)
    assert [host for host in world.hosts.values() if host.vip] == [holder]
    last.power_off()
    holder.power_off()
    world.timeline.run(world.timeline.now + 1.5)
    assert deaf.vip, "it follows as any other"


def test_of_two_that_take_the_address_at_the_same_moment_and_get_no_adverts_one_stays() -> None:
    """Somebody's filter drops VRRP everywhere, and the holder dies."""
    world = new_world(THREE, Roster(THREE), cold=False)
    holder = next(host for host in world.hosts.values() if host.vip)
    heirs = [host for host in world.hosts.values() if host is not holder]
    world.network.filtered.update(world.hosts)
    world.timeline.run(world.timeline.now + 5)
    assert [host for host in world.hosts.values() if host.vip] == [holder]
    holder.power_off()
    world.timeline.run(world.timeline.now + 1)
    assert all(host.vip for host in heirs)
    world.timeline.run(world.timeline.now + 4)
    stayed = [host for host in heirs if host.vip]
    assert len(stayed) == 1
    world.timeline.run(world.timeline.now + 4)
    assert [host for host in heirs if host.vip] == stayed


def test_a_node_that_misses_adverts_does_not_take_the_address_away() -> None:
    """The holder has the lowest priority; some of its adverts do not reach the one with the highest."""
    world = new_world(THREE, Roster(THREE), cold=False)
    first, second, holder = world.hosts.values()
    first.power_off()
    second.power_off()
    world.timeline.run(world.timeline.now + 2)
    first.boot()
    second.boot()
    world.timeline.run(world.timeline.now + 10)
    assert [host.name for host in world.hosts.values() if host.vip] == [holder.name]
    world.network.filtered.add(first.name)
    world.timeline.run(world.timeline.now + 0.7)
    assert first.vip
    world.network.filtered.clear()
    world.timeline.run(world.timeline.now + 0.5)
    assert [host.name for host in world.hosts.values() if host.vip] == [holder.name]


def test_a_seed_is_a_whole_schedule() -> None:
    for seed in range(5):
        first, second = run(seed, tracing=True), run(seed, tracing=True)
        assert first == second
        assert first.trace
        assert replace(first, trace=()) == run(seed) == run(seed, first.kind)


def test_all_kinds_of_schedules_are_drawn() -> None:
    kinds = {schedule.make(seed).kind for seed in range(400)}
    assert kinds == set(schedule.KINDS)


def test_a_replay_shows_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "--kind", "isolation"]) == 0
    shown = capsys.readouterr().out
    assert "FAULT isolate" in shown or "FAULT pair" in shown
    assert "seed 1, isolation" in shown


def test_many_schedules_become_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "12", "--processes", "1", "--kind", "frozen"]) == 0
    assert "| all | 12 |" in capsys.readouterr().out


@pytest.mark.parametrize("single_writer", [True, False])
@pytest.mark.parametrize("target", THREE)
def test_a_planned_move_takes_the_lease_along_to_the_named_server(target: str, single_writer: bool) -> None:
    """Also back, and with a server that has a higher priority than the target."""
    world = new_world(THREE, Roster(THREE), cold=False, single_writer=single_writer)
    for name in (target, "c", "b", "a"):
        happen(world, Fault(0.0, "move", name, (5.0, 1.0, 0.3)))
        world.timeline.run(world.timeline.now + 4.0)
        assert [host.name for host in world.hosts.values() if host.vip] == [name]
        assert [host.name for host in world.writers()] == [name]
    assert world.finding is None


def test_a_writer_that_is_asked_yields_the_lease_when_no_write_is_in_flight_and_keeps_the_vip() -> None:
    world = new_world(THREE, Roster(THREE), cold=False)
    before = world.writing()
    assert before is not None
    happen(world, Fault(0.0, "yields", before.name, (4.0, 1.0)))
    world.timeline.run(world.timeline.now + 2.0)
    assert world.writing() is before, "a write is in flight, and another may follow"
    world.timeline.run(world.timeline.now + 1.5)
    assert world.writers() == []
    assert before.vip
    world.timeline.run(world.timeline.now + 3.0)
    assert world.writing() is before, "it was asked until then only"
    assert world.finding is None


def steering(host: Host) -> Steering:
    assert host.agent.process is not None
    return host.agent.process.steering


def test_the_end_of_a_change_of_members_takes_the_lease_from_nobody() -> None:
    world = new_world(THREE, Roster(THREE, 2, THREE), cold=False)
    before = world.writing()
    assert before is not None
    term = steering(before).memory.lease.term
    for name in THREE:
        happen(world, Fault(0.0, "settle", name, Roster(THREE, 2)))
        world.timeline.run(world.timeline.now + 0.1)
    world.timeline.run(world.timeline.now + 3.0)
    assert world.writing() is before
    assert steering(before).memory.lease.term == term
    assert all(steering(host).settings.before == () for host in world.hosts.values())


def test_a_planned_move_waits_for_writes_in_flight_and_ends_by_itself() -> None:
    world = new_world(THREE, Roster(THREE), cold=False)
    before = world.writing()
    assert before is not None
    target = next(name for name in THREE if name != before.name)
    happen(world, Fault(0.0, "move", target, (2.0, 1.0, 60.0)))
    world.timeline.run(world.timeline.now + 4.0)
    assert world.writing() is before
    assert before.vip
