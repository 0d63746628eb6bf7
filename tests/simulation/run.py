"""One schedule from its beginning to the moment when exactly one server writes again."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from kubeadm_registry.agent.timings import Timings
from tests.simulation import schedule
from tests.simulation.faults import happen
from tests.simulation.quick import quick
from tests.simulation.world import Counts, Finding, World, new_world

BOUND = 15.0  # seconds after all is well again, within which exactly one gate is open
STEADY = 0.5  # seconds for which it stays so
PAUSE_BOUND = 1.01 * Timings().lease  # seconds: what its votes had left, if it is also cut off when it goes on


@dataclass(frozen=True)
class Result:
    """What came of one schedule. *recovery*: seconds from the end of all faults to one open gate."""

    seed: int
    kind: str
    frontend: str
    finding: Finding | None
    counts: Counts
    recovery: float
    events: int
    seconds: float
    trace: tuple[str, ...] = ()


def run(seed: int, kind: str = "", frontend: str = "", *, tracing: bool = False) -> Result:
    """Run the schedule of *seed*, of any *kind* and *frontend* or of these."""
    collects = gc.isenabled()
    gc.disable()  # a world is full of cycles, and none of them is garbage before its end
    try:
        with quick():
            return play(seed, kind, frontend, tracing=tracing)
    finally:
        if collects:
            gc.enable()


def play(seed: int, kind: str, frontend: str, *, tracing: bool) -> Result:
    """What ``run`` does, whatever that costs."""
    plan = schedule.make(seed, kind, frontend)
    world = new_world(plan.names, plan.roster, cold=plan.cold, single_writer=plan.frontend == schedule.ZOT)
    world.tracing = tracing
    world.overlaps_are_allowed = plan.kind == "paused"
    timeline = world.timeline
    start, events = timeline.now, timeline.events
    world.begin(seed, ticks=plan.ticks, rates=plan.rates, anarchy=plan.anarchy)
    describe(world, plan)
    for fault in plan.faults:
        timeline.at(start + fault.at, happen, world, fault)
    healed = start + plan.heals
    timeline.at(healed, world.heal, plan.after)
    timeline.run(healed + 0.001)
    recovery = 0.0
    while not timeline.done:
        timeline.run(timeline.now + STEADY / 2)
        left = [name for name in (plan.after.former if plan.after else ()) if world.hosts[name].vip]
        if world.alone_since is not None and timeline.now - world.alone_since >= STEADY and not left:
            recovery = max(0.0, world.alone_since - healed)
            break
        if timeline.now - healed > BOUND + STEADY:
            if left:
                world.broken("who left is not heard of", f"{', '.join(left)} has the VIP after {BOUND} s")
            world.broken("one gate after healing", f"not exactly one after {BOUND} s: {len(world.writers())}")
    if world.counts.overlap > PAUSE_BOUND:
        world.broken("a pause is bounded", f"two zots could change the store for {world.counts.overlap:.2f} s")
    return Result(
        seed,
        plan.kind,
        plan.frontend,
        world.finding,
        world.counts,
        recovery,
        timeline.events - events,
        timeline.now - start,
        tuple(world.trace),
    )


def describe(world: World, plan: schedule.Schedule) -> None:
    """The first lines of the trace."""
    writer = world.writing()
    who = "just switched on" if plan.cold else f"{writer.name if writer is not None else 'nobody'} writes"
    world.say(
        "",
        f"seed {plan.seed}, {plan.kind}, {plan.frontend}: {', '.join(plan.roster.names)}; {who};"
        f" all is healed after {plan.heals:.2f} s",
    )
    for host, tick, rate in zip(world.hosts.values(), plan.ticks, plan.rates, strict=True):
        world.say(host.name, f"a round each {tick} s, news after {host.reaction} s, clock at a rate of {rate:.4f}")
    for fault in plan.faults:
        value = "" if fault.value is None else f" {fault.value}"
        world.say("", f"planned at {world.timeline.now + fault.at:.4f}: {fault.what} {fault.who}{value}")
