"""What the agent asks of its own Garage by its admin interface, and Garage would do by itself only much later.

Source: the admin API v2 of Garage, https://garagehq.deuxfleurs.fr/api/garage-admin-v2.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config, Peer
from kubeadm_registry.agent.document import Left, Queues
from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome, http_answer, http_complete, http_request
from kubeadm_registry.agent.workers import BEGINS, GENTLE, QUICK, Work, lost_in, queues_in, work_in

DEADLINE = 5.0  # seconds
LASTING = 2.0  # seconds of work after which it counts: a look at the tables every ten minutes is some
QUIET = 10.0  # seconds without work after which nothing is left: the workers take turns, and tables come before blocks
CALM = 10.0  # seconds without a slow node after which it copies quickly again
RETRY, LONGEST_RETRY = 10.0, 640.0  # seconds until blocks that failed are tried again, each time twice as long
ASK_AGAIN = 30.0  # seconds from one question which blocks the nodes have failed to get to the next
MANY = 10_000  # blocks, of which more are not asked about: the answer is read between two decisions
COPIES = 3  # nodes that keep a block, where there are as many


class Copying:
    """Whether this node's storage brings over what it missed, by what its workers say from time to time. Pure."""

    def __init__(self) -> None:
        self.left: Optional[Left] = None
        """What was left at the last look; None: not known."""
        self._since: Optional[float] = None
        self._last = 0.0
        self._counts = False

    def begin(self, now: float) -> None:
        """The tables are compared from *now* on: it counts until nothing comes of that."""
        self._since, self._counts, self._last = now, True, max(self._last, now - QUIET + BEGINS)

    def take(self, left: Optional[Left], now: float) -> None:
        """At *now* this was *left*; None: there was no answer, and what was known stays."""
        if left is None:
            return
        self.left = left
        if left["blocks"] or left["tables"]:
            self._since = now if self._since is None else self._since
            self._last = now
            self._counts = self._counts or now - self._since >= LASTING
        elif now - self._last >= QUIET:
            self._since, self._counts = None, False
        elif not self._counts:
            self._since = None

    @property
    def now(self) -> bool:
        """Whether it does: not for what is done at once, and until nothing was left for a while."""
        return self._counts


class Lost:
    """How many blocks this node should have and no node has: nothing will bring them. Pure."""

    def __init__(self, copies: int) -> None:
        self.copies = copies
        """Nodes that keep a block."""
        self.count: Optional[int] = None
        """None: not known yet."""
        self._next = 0.0

    def due(self, work: Work, now: float) -> bool:
        """Whether the nodes are to be asked: for blocks that failed, where nothing else is left."""
        if not work.failed:
            self.count, self._next = 0, 0.0
        elif self.count is not None:
            self.count = min(self.count, work.failed)
        only = not work.left["tables"] and 0 < work.left["blocks"] <= work.failed <= MANY
        if not only or now < self._next:
            return False
        self._next = now + ASK_AGAIN
        return True

    def left(self, work: Work) -> Left:
        """What *work* has left that can still come."""
        return {**work.left, "blocks": max(0, work.left["blocks"] - (self.count or 0))}


class Pace:
    """How quickly Garage copies what is missing, and when it tries again what it could not get. Pure."""

    def __init__(self) -> None:
        self._slow: Optional[float] = None
        self._next = 0.0
        self._wait = RETRY

    def wanted(self, *, copying: bool, slow: bool, now: float) -> Mapping[str, str]:
        """The worker variables to set. *slow*: a node that serves reads is late, perhaps because of the copies."""
        if slow:
            self._slow = now
        rested = self._slow is None or now - self._slow >= CALM
        return QUICK if copying and rested else GENTLE

    def again(self) -> None:
        """A storage is back: what failed without it is tried again at the next look."""
        self._next, self._wait = 0.0, RETRY

    def retry(self, failed: int, now: float) -> bool:
        """Whether the *failed* blocks are to be tried again now. A block that no node has fails each time."""
        if not failed:
            self.again()
            return False
        if now < self._next:
            return False
        self._next, self._wait = now + self._wait, min(2 * self._wait, LONGEST_RETRY)
        return True


class Garage:
    """This node's Garage. *failed* is told, with a kind and a sentence, what could not be done."""

    def __init__(self, config: Config, failed: Callable[[str, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._storage = config.storage
        self._token_file = config.garage_admin_token_file
        self._peers = [_address(peer, config.ports.rpc) for peer in config.peers if peer.garage_node_id]
        self._failed = failed
        self._others = frozenset(peer.garage_node_id for peer in config.peers)
        self.copying = Copying()
        self.lost = Lost(min(COPIES, 1 + len(config.peers)))
        self.queues: Optional[Queues] = None
        """What was in its books at the last count; None: not known."""
        self._pace = Pace()
        self._set: dict[str, str] = {}
        self._token = ""

    def connect(self) -> None:
        """Connect to the peers now; by itself Garage would after ten to thirty seconds."""
        if self._peers:
            self._post("/v2/ConnectClusterNodes", self._peers, "connect to its peers")

    def compare(self) -> None:
        """Compare the tables with the peers' now and send what they lack; by itself Garage would within ten minutes."""
        self._post("/v2/LaunchRepairOperation?node=self", {"repairType": "tables"}, "compare its tables")
        self.copying.begin(clock())
        self._pace.again()

    def look(self, *, slow: bool) -> None:
        """Ask what its workers have left, for *copying*, and set how quickly they work.

        *slow*: this node, or one that is heard, reads too slowly.
        """
        every = {"busyOnly": False, "errorOnly": False}

        def lost(body: bytes) -> None:
            count = lost_in(body, self.lost.copies, self._others)
            self.lost.count = self.lost.count if count is None else count

        def take(body: bytes) -> None:
            work, now = work_in(body), clock()
            if work is not None and self.lost.due(work, now):
                self._ask("GET", "/v2/ListBlockErrors?node=*", None, "tell which blocks the nodes cannot get", lost)
            self.copying.take(None if work is None else self.lost.left(work), now)
            if work is not None and self._pace.retry(work.failed, now):
                self._post("/v2/RetryBlockResync?node=self", {"all": True}, "try again to get blocks")
            for variable, value in self._pace.wanted(copying=self.copying.now, slow=slow, now=now).items():
                self._set_variable(variable, value)

        self._post("/v2/ListWorkers?node=self", every, "tell of its workers", take)

    def count(self) -> None:
        """Ask what is in its books, for people: it counts entries of every table, so rarely."""

        def take(body: bytes) -> None:
            self.queues = queues_in(body)

        self._ask("GET", "/v2/GetNodeStatistics?node=self", None, "count what it has", take)

    def _set_variable(self, variable: str, value: str) -> None:
        """Set a variable of its workers, which Garage keeps, unless this agent has set it so."""
        if self._set.get(variable) == value:
            return

        def take(_: bytes) -> None:
            self._set[variable] = value

        wanted = {"variable": variable, "value": value}
        self._post("/v2/SetWorkerVariable?node=self", wanted, f"set {variable} to {value}", take)

    def _post(
        self, path: str, body: Sequence[str] | dict[str, Any], what: str, take: Callable[[bytes], None] = lambda _: None
    ) -> None:
        self._ask("POST", path, json.dumps(body).encode(), what, take)

    def _ask(self, method: str, path: str, body: Optional[bytes], what: str, take: Callable[[bytes], None]) -> None:
        storage = self._storage
        if storage is None or not self._token_file:
            return
        kind = path[4:].partition("?")[0]
        try:
            token = self._token = self._token or Path(self._token_file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            self._failed(kind, f"cannot read the token of the storage: {error}")
            return

        def done(outcome: Outcome) -> None:
            code, answer = http_answer(outcome.data) if outcome.kind is Kind.ANSWERED else (0, b"")
            if code == 200:
                take(answer)
            else:
                self._token = ""  # perhaps there is a new one
                self._failed(kind, f"the storage did not {what}: {code or outcome.kind.value}")

        request = http_request(
            f"{storage.admin_address}:{storage.admin_port}",
            path,
            method=method,
            token=token,
            body=body,
        )
        Exchange(
            self._loop,
            (storage.admin_address, storage.admin_port),
            request,
            deadline=DEADLINE,
            done=done,
            complete=http_complete,
        )


def _address(peer: Peer, port: int) -> str:
    host = f"[{peer.address}]" if ":" in peer.address else peer.address
    return f"{peer.garage_node_id}@{host}:{port}"
