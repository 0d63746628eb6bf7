"""What a node leaves behind that dies with the VIP: all know its clients, and the next holder ends what they have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Callable, Optional

from kubeadm_registry.agent import clients
from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config
from kubeadm_registry.agent.endings import Ending
from kubeadm_registry.agent.log import described
from kubeadm_registry.agent.netlink import IPV4, IPV6, Connections, End, Ruleset
from kubeadm_registry.agent.peers import Links

TABLE = "kubeadm-registry-ending"
"""The nft table without which the kernel answers by RST before a connection has ended."""
PASSES = "kubeadm-registry-pass"
"""That of a node to which the VIP has moved as planned: connections of before go on at a node that lives."""
SETTLES = 0.1  # seconds from the VIP to the first packet: by then its neighbors know where it is
SHARE = 0.05  # of this agent's time, which a node with many clients takes to tell of them

Tell = Callable[[str, str], None]  # a kind and a sentence


class Inheritance:
    """Tells the peers who is connected with the VIP while it is here, and ends what its last holder had.

    *log* hears what was done, *failed* what went wrong.
    """

    def __init__(self, config: Config, links: Links, log: Tell, failed: Tell) -> None:
        self._vips = config.vips
        self._port = config.ports.public
        self._links = links
        self._log = log
        self._failed = failed
        self._connections = Connections()
        self._held: Optional[bool] = None
        self._tells = 0.0
        self._begins: Optional[float] = None
        self._left: Mapping[str, Collection[clients.Client]] = {}
        self._endings: list[Ending] = []

    def tick(self, now: float, held: bool) -> None:
        """Do what is due. *held*: the VIP is here.

        An agent that starts has heard of no clients, and takes up nothing that was here before it.
        """
        if held and self._held is False:
            self._left, self._begins = self._links.connected(now), now + SETTLES
        if not held:
            self._begins = None
            self._stop()
        self._held = held
        try:
            if held and now >= self._tells:
                self._tell(now)
            if self._begins is not None and now >= self._begins:
                self._begins = None
                self._begin()
        except OSError as error:
            self._failed("inheritance", f"cannot end or tell the connections of the VIP: {described(error)}")

    def _tell(self, now: float) -> None:
        begin = clock()
        try:
            self._links.tell({vip: self._here(vip) for vip in self._vips})
        finally:  # a kernel that cannot tell is asked no oftener; it may look for a module each time
            self._tells = now + max(clients.EVERY, (clock() - begin) / SHARE)

    def _here(self, vip: str) -> list[clients.Client]:
        found = self._connections.find(End(vip, self._port))
        return sorted(one.other for one in found)[: clients.MOST]

    def _begin(self) -> None:
        self._stop()
        left = {vip: set(there).difference(self._here(vip)) for vip, there in self._left.items() if vip in self._vips}
        if not any(left.values()):
            return
        ruleset = Ruleset()
        try:
            if any(ruleset.rules(PASSES, family) for family in (IPV4, IPV6)):
                return
            ready = ruleset.rules(TABLE) > 0
        finally:
            ruleset.close()
        if not ready:
            self._failed("inheritance", f"there are no nft rules in {TABLE}: the last holder's clients are left alone")
            return
        for vip, there in left.items():
            if there:
                self._endings.append(Ending(vip, self._port, there, self._ended))

    def _ended(self, count: int, of: int) -> None:
        self._log("inheritance", f"ended {count} of {of} connections of clients that the last holder of the VIP had")

    def _stop(self) -> None:
        for one in self._endings:
            one.close()
        self._endings.clear()

    def close(self) -> None:
        """End what is going on."""
        self._stop()
        self._connections.close()
