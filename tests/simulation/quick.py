"""What a schedule does hundreds of times, done with less work and with the same outcome: `test_quick` compares the two.

* Large values are made and copied in each round, and a frozen dataclass is slow at both.
* The product's own code encodes and decodes each report that is new, and so all that a heartbeat tells the rules. The
  same report once more goes as it was read then; what else a datagram says is names, counters and a time.
* The conditions are names for people. Nothing is decided by them, and nobody reads them here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest.mock import patch

from kubeadm_registry.agent import lease, presence, rules
from kubeadm_registry.agent.heartbeat import Packet
from kubeadm_registry.agent.model import Answers, Decisions, HardState, Observation, PeerView, Report
from tests.simulation import links

T = TypeVar("T")

MADE_OFTEN: tuple[type[Any], ...] = (Answers, Decisions, HardState, Observation, Packet, PeerView, Report)
MOST = 1000  # reports that are remembered

_heard: dict[int, tuple[Report, Report]] = {}  # by the report's identity, with the report so that it stays that
_carried = links.carried


def copy(value: T, /, **changes: Any) -> T:
    """``dataclasses.replace`` for classes without slots, InitVar and ``__post_init__``, as those of the rules are."""
    new = object.__new__(type(value))
    object.__setattr__(new, "__dict__", value.__dict__ | changes)
    return new


def constructor(kind: type[Any]) -> Any:
    """The ``__init__`` that the dataclass *kind* would have if it were not frozen. No default of it has a factory."""
    defaults = {name: getattr(kind, name) for name in kind.__annotations__ if hasattr(kind, name)}
    plain = type(kind.__name__, (), {"__annotations__": kind.__annotations__, **defaults})
    return vars(dataclass(plain))["__init__"]


def carried(packet: Packet) -> Packet:
    """What the receiver of *packet* reads."""
    report = packet.report
    known = _heard.get(id(report))
    if known is None:
        if len(_heard) >= MOST:
            _heard.clear()
        known = _heard[id(report)] = report, _carried(packet).report
    return copy(packet, report=known[1])


def no_conditions(*_: object, **__: object) -> tuple[str, ...]:
    """None."""
    return ()


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Work so meanwhile. Within another one it does nothing: around many schedules it saves the changes for each."""
    if links.carried is carried:
        yield
        return
    _heard.clear()  # what encodes and decodes now may be another
    with contextlib.ExitStack() as stack:
        for module in (rules, lease, presence, links):
            stack.enter_context(patch.object(module, "replace", copy))
        stack.enter_context(patch.object(links, "carried", carried))
        stack.enter_context(patch.object(rules, "conditions", no_conditions))
        for kind in MADE_OFTEN:
            made = {"__init__": constructor(kind), "__setattr__": object.__setattr__}
            stack.enter_context(patch.multiple(kind, **made))
        yield
