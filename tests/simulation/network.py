"""The network between the hosts: it loses, delays, doubles and reorders, and can be cut in one direction only."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.simulation.timeline import Action, Timeline


@dataclass
class Weather:
    """How packets fare. Delays are seconds."""

    delay: float = 0.0005
    loss: float = 0.0
    doubled: float = 0.0
    late: float = 0.0  # share of packets that come late, and so out of order
    lateness: float = 0.3  # at most


class Network:
    """Who reaches whom."""

    def __init__(self, timeline: Timeline, random: Random) -> None:
        self.timeline = timeline
        self.random = random
        self.weather = Weather()
        self.cuts: set[tuple[str, str]] = set()
        self.filtered: set[str] = set()  # who gets no adverts of VRRP, which somebody's filter drops
        self.slow: dict[tuple[str, str], tuple[float, float]] = {}  # ways that take so many seconds, from and to

    def cut(self, source: str, target: str) -> None:
        """From now on nothing gets from *source* to *target*."""
        self.cuts.add((source, target))

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets from *source* to *target*."""
        return (source, target) in self.cuts

    def heal(self) -> None:
        """All reach all again, in good weather."""
        self.cuts.clear()
        self.filtered.clear()
        self.slow.clear()
        self.weather = Weather()

    def send(self, source: str, target: str, arrive: Action, *arguments: object) -> None:
        """Let *arrive* happen at the target, perhaps; what is under way when a cut begins still arrives."""
        if self.is_cut(source, target):
            return
        weather, random = self.weather, self.random.random
        if weather.loss and random() < weather.loss:
            return
        for _ in range(2 if weather.doubled and random() < weather.doubled else 1):
            delay = weather.delay * (0.5 + random())
            if self.slow and (way := self.slow.get((source, target))) is not None:
                delay += way[0] + (way[1] - way[0]) * random()
            if weather.late and random() < weather.late:
                delay += weather.lateness * random()
            self.timeline.after(delay, arrive, *arguments)
