"""Seeded random schedules of faults, in classes; each aims at other promises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tests.simulation.agent import Roster
from tests.simulation.faults import Fault

THREE = ("a", "b", "c")
TICKS = (0.05, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2)  # seconds between two rounds: busy servers decide less often
FOUR = ("a", "b", "c", "d")
FIVE = ("a", "b", "c", "d", "e")
ZOT, DISTRIBUTION = "zot", "distribution"
DISTRIBUTIONS = 0.3  # share of the schedules
POINTS = ("ticket", "clock", "looked", "observe", "observed", "renew", "renewed", "route", "keep", "say", "write")
BACK = (-0.4, -3.0, -3600.0, -86400.0 * 400)  # seconds that a clock is wrong after a reboot


@dataclass(frozen=True)
class Schedule:
    """What happens to whom. *heals* is when it all has ended, *cold*: it begins with the power switched on."""

    seed: int
    kind: str
    faults: tuple[Fault, ...]
    heals: float
    names: tuple[str, ...]
    roster: Roster
    after: Roster | None  # the members that all have in the end, if they change
    cold: bool
    anarchy: bool  # the VIP goes where the schedule says, not where keepalived would have it
    ticks: tuple[float, ...]  # seconds between two rounds of each agent
    rates: tuple[float, ...]  # of each server's clocks
    frontend: str  # ZOT: one node may write; DISTRIBUTION: all may, and an executor acts under the lease


def lasting(random: Random) -> float:
    """How long something stands still: mostly about as long as leases and watchdogs."""
    return random.choice([random.uniform(0.2, 1.0), random.uniform(0.5, 2.2), random.uniform(1.5, 5.0)])


def cut(random: Random, at: float, who: str) -> Fault:
    """One way of losing the network."""
    return random.choice(
        [
            Fault(at, "isolate", who, "both"),
            Fault(at, "isolate", who, random.choice(["both", "in", "out"])),
            Fault(at, "pair", who, random.choice(["both", "in", "out"])),
        ]
    )


def standstill(random: Random, at: float, who: str) -> Fault:
    """One way of not being run."""
    return random.choice(
        [
            Fault(at, "stall", who, lasting(random)),
            Fault(at, "stall_within", who, (random.choice(POINTS), lasting(random))),
            Fault(at, "still_within", who, (random.choice(POINTS), lasting(random))),
            Fault(at, "still", who, lasting(random)),
        ]
    )


def small(random: Random, at: float, who: str) -> Fault:
    """Something that goes wrong on one server."""
    return random.choice(
        [
            Fault(at, "crash_agent", who),
            Fault(at, "stop_agent", who),
            Fault(at, "reload_agent", who),
            Fault(at, "crash_zot", who),
            Fault(at, "stop_zot", who, lasting(random)),
            Fault(at, "zot_stays", who, random.uniform(0.0, 2.5)),
            Fault(at, "crash_haproxy", who, random.randrange(2)),
            Fault(at, "reload_haproxy", who, random.randrange(2)),
            Fault(at, "stop_haproxy", who, (random.randrange(2), lasting(random))),
            Fault(at, "crash_keepalived", who),
            Fault(at, "no_adverts", who),
            Fault(at, "stop_keepalived", who, lasting(random)),
            Fault(at, "slow_close", who, random.uniform(0.3, 3.0)),
            Fault(at, "slow_disk", who, random.choice([0.1, 0.5, 2.0])),
            Fault(at, "wall", who, random.choice([-0.3, 0.3, -5.0, 5.0, -3600.0])),
            Fault(at, "rate", who, random.uniform(0.99, 1.01)),
        ]
    )


def storm(random: Random, at: float) -> Fault:
    """Bad weather for all."""
    shares = (random.choice([0.0, 0.1, 0.3]), random.choice([0.0, 0.3]), random.choice([0.0, 0.2, 0.5]))
    return Fault(at, "weather", "any", (*shares, random.choice([0.1, 0.4, 1.2])))


def who(random: Random) -> str:
    return random.choice(["writer", "writer", "other", "holder", "any"])


def isolation(random: Random) -> tuple[list[Fault], float]:
    """The writer is cut off, and then not run, or what ends it is slow."""
    first = random.uniform(0.1, 0.4)
    faults = [cut(random, first, "writer")]
    if random.random() < 0.5:
        faults.append(Fault(0.05, "slow_close", "writer", random.uniform(0.3, 3.5)))
    for _ in range(random.choice([1, 1, 2])):
        later = random.choice([random.uniform(-0.1, 0.8), random.uniform(-0.1, 3.5)])
        faults.append(standstill(random, first + later, random.choice(["writer", "writer", "other"])))
    if random.random() < 0.2:
        what = random.choice(["reload_agent", "crash_agent", "stop_agent"])
        faults.append(Fault(first + random.uniform(0.0, 0.5), what, "others"))
    if random.random() < 0.4:
        faults.append(small(random, first + random.uniform(0.0, 4.0), who(random)))
    return faults, first + random.uniform(3.5, 5.5)


def frozen(random: Random) -> tuple[list[Fault], float]:
    """The writer is cut off, and soon stands still between the look at its clock and what it then does."""
    first = random.uniform(0.1, 0.4)
    point = random.choice(["looked", "observe", "observed", "renew", "renew", "renewed", "write"])
    what = random.choice(["still_within", "still_within", "stall_within"])
    seconds = random.uniform(2.0, 5.0) if what == "still_within" else lasting(random)
    faults = [
        Fault(first, "isolate", "writer", random.choice(["both", "both", "in", "out"])),
        Fault(
            first + random.choice([random.uniform(-0.1, 0.8), random.uniform(0.5, 2.4)]),
            what,
            "writer",
            (point, seconds),
        ),
    ]
    if random.random() < 0.3:
        faults.append(Fault(0.05, "zot_stays", "writer", random.uniform(0.0, 2.0)))
    if random.random() < 0.3:
        faults.append(random.choice([cut, standstill, small])(random, first + random.uniform(0.0, 4.0), who(random)))
    return faults, first + random.uniform(4.0, 6.0)


def chaos(random: Random) -> tuple[list[Fault], float]:
    """A bit of everything."""
    faults = []
    end = random.uniform(3.0, 7.0)
    for _ in range(random.randrange(2, 8)):
        at = random.uniform(0.05, end)
        made = random.choice([cut, standstill, small, small])
        faults.append(made(random, at, who(random)))
    if random.random() < 0.5:
        faults.append(storm(random, random.uniform(0.0, end)))
    if random.random() < 0.4:
        faults.append(Fault(random.uniform(0.5, end), "heal", "any"))
    return faults, end + random.uniform(0.0, 1.5)


def reboots(random: Random) -> tuple[list[Fault], float]:
    """Power is lost, of the writer, of voters or of all, and clocks come back wrong."""
    back = random.choice([0.0, *BACK])
    if random.random() < 0.3:  # just as another server begins to write, and disks are slow
        at = random.uniform(0.9, 2.4)
        faults = [
            Fault(0.01, "slow_disk", "all", random.choice([1.0, 2.0, 3.0])),
            Fault(0.05, random.choice(["stop_agent", "stop_agent", "crash_agent"]), "writer"),
            Fault(
                at, "power", random.choice(["all", "all", "writer"]), (random.uniform(0.1, 1.0), random.choice(BACK))
            ),
        ]
        return faults, at + random.uniform(5.0, 7.0)
    faults = []
    if random.random() < 0.5:
        faults.append(Fault(0.01, "slow_disk", "all", random.choice([0.05, 0.3, 1.5])))
    at = random.uniform(0.05, 0.5)
    for _ in range(random.choice([1, 2, 2, 3])):
        what = random.choice(["power", "power", "reboot"])
        target = random.choice(["writer", "other", "any", "all"])
        faults.append(Fault(at, what, target, (random.uniform(0.1, 1.5), back)))
        at += random.uniform(0.3, 2.5) if random.random() < 0.5 else random.uniform(1.5, 5.0)
    if random.random() < 0.5:
        faults.append(cut(random, random.uniform(0.1, at), who(random)))
    return faults, at + random.uniform(0.0, 2.0)


def anarchy(random: Random) -> tuple[list[Fault], float]:
    """The address comes and goes anywhere; the lease alone must do."""
    faults = []
    end = random.uniform(4.0, 8.0)
    for name in THREE:
        at, here = random.uniform(0.0, 1.0), random.random() < 0.6
        while at < end:
            faults.append(Fault(at, "vip", name, here))
            at, here = at + random.uniform(0.2, 2.5), not here
    for _ in range(random.randrange(1, 4)):
        faults.append(random.choice([cut, standstill, small])(random, random.uniform(0.0, end), who(random)))
    if random.random() < 0.5:
        faults.append(Fault(random.uniform(1.0, end), "heal", "any"))
    return faults, end


def change(random: Random) -> tuple[list[Fault], float]:
    """Three servers become five while the network is split; the change reaches one after the other, or some only."""
    new = Roster(FIVE, 2, THREE)
    order = random.sample(FIVE, len(FIVE))
    if random.random() < 0.6:
        order.sort(key=lambda name: name in THREE)  # the new ones first
    at, faults = random.uniform(0.0, 0.3), []
    reached = random.choice([2, 3, 3, 3, 4, 5])
    for name in order[:reached]:
        faults.append(Fault(at, "members", name, new))
        at += random.uniform(0.0, 0.2) if random.random() < 0.7 else random.uniform(0.2, 2.0)
    if random.random() < 0.8:
        side = order[reached:] if random.random() < 0.6 else random.sample(FIVE, random.choice([1, 2]))
        faults.append(Fault(random.uniform(0.0, at), "split_off", "any", "".join(sorted(side))))
    for _ in range(random.choice([0, 0, 1, 2])):
        made = random.choice([cut, standstill, small])
        faults.append(made(random, random.uniform(0.0, at + 2.0), who(random)))
    return faults, at + random.uniform(4.0, 7.0)


def replaced(random: Random) -> tuple[list[Fault], float]:
    """One of three servers is replaced; it is off, cut off or neither, and there again before all have the new list."""
    old = random.choice(THREE)
    stay = [name for name in THREE if name != old]
    new = Roster((*stay, "d"), 2, THREE, (old,))
    at, faults = random.uniform(0.0, 0.3), []
    how = random.random()
    if how < 0.5:
        faults.append(Fault(at, "power", old, (random.uniform(1.0, 8.0), random.choice([0.0, *BACK]))))
    elif how < 0.8:
        faults.append(Fault(at, "isolate", old, "both"))
    at += random.uniform(0.1, 1.5)
    for name in ("d", *random.sample(stay, len(stay))):
        faults.append(Fault(at, "members", name, new))
        at += random.uniform(0.0, 0.2) if random.random() < 0.5 else random.uniform(0.2, 2.0)
    at += random.uniform(0.0, 2.0)
    for name in random.sample(new.names, len(new.names)):
        faults.append(Fault(at, "settle", name, replace(new, before=())))
        at += random.uniform(0.0, 0.5)
    for _ in range(random.choice([0, 0, 1, 2])):
        made = random.choice([cut, standstill, small])
        faults.append(made(random, random.uniform(0.0, at + 1.0), who(random)))
    return faults, at + random.uniform(4.0, 7.0)


def restored(random: Random) -> tuple[list[Fault], float]:
    """Five servers, and some of them get back the list of the three that they had before; then the network splits."""
    faults, at = [], random.uniform(0.05, 0.3)
    given_back = random.sample(THREE, 2)
    for name in given_back:
        faults.append(Fault(at, "members", name, Roster(THREE)))
        at += random.uniform(0.0, 1.0)
    faults.append(Fault(random.uniform(0.0, at), "split_off", "any", "".join(given_back)))
    if random.random() < 0.5:
        faults.append(random.choice([cut, standstill, small])(random, random.uniform(0.0, at + 2.0), who(random)))
    return faults, at + random.uniform(5.0, 7.0)


def late(random: Random) -> tuple[list[Fault], float]:
    """Everything comes late, or what is sent to the writer only, and then some do not hear each other any more."""
    at = random.uniform(0.8, 1.8)
    if random.random() < 0.5:
        slow = random.uniform(0.2, 0.8)
        faults = [Fault(0.01, "slow_to", "writer", (slow, slow + 0.1)), Fault(at, "isolate", "writer", "both")]
        faults.append(Fault(at + random.uniform(0.5, 3.0), "stall", "writer", lasting(random)))
        return faults, at + random.uniform(4.5, 6.0)
    lateness = random.choice([0.3, 0.6, 0.9, 1.5])
    shares = (random.choice([0.0, 0.1]), random.choice([0.0, 0.3]), random.choice([0.5, 1.0]))
    faults = [Fault(0.01, "weather", "any", (*shares, lateness)), cut(random, at, "writer")]
    if random.random() < 0.6:
        faults.append(Fault(at + 0.05, "weather", "any", (0.0, 0.0, 0.0, 0.0)))
    for _ in range(random.randrange(0, 3)):
        faults.append(random.choice([cut, standstill, small])(random, at + random.uniform(-0.2, 3.0), who(random)))
    return faults, at + random.uniform(4.0, 6.0)


def moves(random: Random) -> tuple[list[Fault], float]:
    """VIP or lease are given up as planned, once or more; all are asked or some only, and things go wrong meanwhile."""
    at, faults = random.uniform(0.05, 0.4), []
    for _ in range(random.choice([1, 1, 2, 3])):
        if random.random() < 0.3:
            faults.append(Fault(at, "yields", "writer", (random.uniform(1.0, 5.0), random.choice([0.0, 0.3, 2.0]))))
        else:
            value = (random.uniform(1.0, 5.0), random.choice([1.0, 1.0, 0.5]), random.choice([0.0, 0.3, 2.0]))
            faults.append(Fault(at, "move", random.choice(["other", "other", "any"]), value))
        if random.random() < 0.7:
            made = random.choice([cut, standstill, small])
            faults.append(made(random, max(0.01, at + random.uniform(-0.3, 1.5)), who(random)))
        at += random.choice([random.uniform(0.1, 1.0), random.uniform(1.5, 4.0)])
    return faults, at + random.uniform(2.0, 4.0)


def flushed(random: Random) -> tuple[list[Fault], float]:
    """The packet filter's rules are gone: of the writer, whose agent runs, or of the standbys, of whom one is next."""
    at = random.uniform(0.05, 0.4)
    if random.random() < 0.3:
        faults = [Fault(at, "flush", "writer"), cut(random, at + random.uniform(0.4, 2.0), "any")]
        return faults, at + random.uniform(3.5, 6.0)
    faults = [Fault(at, "flush", random.choice(["others", "others", "other"])), Fault(at + 0.1, "stop_agent", "writer")]
    at += random.uniform(1.5, 3.5)
    faults.append(cut(random, at, "writer"))
    faults.append(standstill(random, at + random.uniform(-0.1, 2.4), "writer"))
    faults.append(Fault(at + random.uniform(2.0, 4.0), "unflush", "all"))
    return faults, at + random.uniform(5.0, 7.0)


def paused(random: Random) -> tuple[list[Fault], float]:
    """A virtual machine is paused, with its clocks."""
    at = random.uniform(0.1, 0.5)
    faults = [Fault(at, "pause", random.choice(["writer", "writer", "other"]), random.uniform(0.5, 7.0))]
    if random.random() < 0.5:
        faults.append(cut(random, random.uniform(0.0, at + 3.0), who(random)))
    if random.random() < 0.3:
        faults.append(standstill(random, random.uniform(0.0, 4.0), who(random)))
    return faults, at + 7.5


KINDS = {
    "isolation": (isolation, 20),
    "frozen": (frozen, 10),
    "chaos": (chaos, 24),
    "reboots": (reboots, 14),
    "anarchy": (anarchy, 12),
    "late": (late, 8),
    "change": (change, 5),
    "replaced": (replaced, 5),
    "restored": (restored, 1),
    "flushed": (flushed, 3),
    "paused": (paused, 3),
    "moves": (moves, 8),
}


def make(seed: int, kind: str = "", frontend: str = "") -> Schedule:
    """The schedule of *seed*, of any kind and frontend or of these."""
    random = Random(f"schedule {seed}")
    drawn = random.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    kind = kind or drawn  # a seed is the same schedule, with the kind named or not
    other = Random(f"frontend {seed}").random() < DISTRIBUTIONS
    faults, heals = KINDS[kind][0](random)
    five = kind in ("isolation", "chaos") and random.random() < 0.06
    before, after = Roster(FIVE if five else THREE), None
    if kind == "change":
        after = Roster(FIVE, 2, THREE)
    elif kind == "restored":
        before = after = Roster(FIVE, 2)
    elif kind == "replaced":
        after = next(fault.value for fault in faults if fault.what == "members")
    names = FOUR if kind == "replaced" else (after or before).names
    spread = random.choice([0.0, 0.0002, 0.001, 0.01])
    return Schedule(
        seed=seed,
        kind=kind,
        # What begins after the healing would not end with it: a clock that is set wrong stays so.
        faults=tuple(sorted((fault for fault in faults if fault.at < heals), key=lambda fault: fault.at)),
        heals=heals,
        names=names,
        roster=before,
        after=after,
        cold=kind not in ("anarchy", "restored") and random.random() < 0.06,
        anarchy=kind == "anarchy",
        ticks=tuple(random.choice(TICKS) for _ in names),
        rates=tuple(1.0 + random.uniform(-spread, spread) for _ in names),
        frontend=frontend or (DISTRIBUTION if other else ZOT),
    )


#: All pairs of servers and what they know of each other at the start of a schedule.
BEGINNINGS = (
    (THREE, Roster(THREE)), (FOUR, Roster(THREE)), (FIVE, Roster(THREE)), (FIVE, Roster(FIVE)), (FIVE, Roster(FIVE, 2)),
)  # fmt: skip
