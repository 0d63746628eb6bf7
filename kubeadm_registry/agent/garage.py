"""What the agent asks of its own Garage by its admin interface, and Garage would do by itself only much later.

Source: the admin API v2 of Garage, https://garagehq.deuxfleurs.fr/api/garage-admin-v2.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from kubeadm_registry.agent.clock import clock
from kubeadm_registry.agent.config import Config, Peer
from kubeadm_registry.agent.document import Left
from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome, http_answer, http_complete, http_request

DEADLINE = 5.0  # seconds
LASTING = 2.0  # seconds of work after which it counts: a look at the tables every ten minutes is some
QUIET = 10.0  # seconds without work after which nothing is left: the workers take turns, and tables come before blocks
BEGINS = (
    8.0  # seconds in which the work shows that a comparison of the tables brings: blocks wait 4 s before they count
)


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


def left_in(body: bytes) -> Optional[Left]:
    """What the workers in an answer of ListWorkers have left, and cannot get; None if it is no such answer.

    Parts of tables that the node has not compared with the others are in the queues of the workers whose names end in
    ``sync``, blocks that it lacks in the one queue of the workers called ``Block resync worker``.
    """
    try:
        [workers] = json.loads(body)["success"].values()
        tables = sum(int(one["queueLength"] or 0) for one in workers if one["name"].endswith(" sync"))
        return {"blocks": _blocks([one for one in workers if one["name"].startswith("Block resync worker")]),
                "tables": tables}  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _blocks(workers: Sequence[dict[str, Any]]) -> int:
    """How many blocks the queue that *workers* share has for now, or has failed to get.

    It also has blocks for later: four seconds after a push each is looked for once more, and ten minutes after a
    deletion it is removed (Garage 2.3, block/manager.rs). All workers are idle then.
    """
    working = [one for one in workers if one["queueLength"] is not None]  # the others are switched off
    queued = max((int(one["queueLength"]) for one in working if one["state"] != "idle"), default=0)
    # An idle worker tells what was so when it became idle. A new failure wakes it, a success does not.
    failed = min((int(one["persistentErrors"]) for one in working), default=0)
    return max(queued, failed)


class Garage:
    """This node's Garage. *failed* is told, with a kind and a sentence, what could not be done."""

    def __init__(self, config: Config, failed: Callable[[str, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._storage = config.storage
        self._token_file = config.garage_admin_token_file
        self._peers = [_address(peer, config.ports.rpc) for peer in config.peers if peer.garage_node_id]
        self._failed = failed
        self.copying = Copying()

    def connect(self) -> None:
        """Connect to the peers now; by itself Garage would after ten to thirty seconds."""
        if self._peers:
            self._post("/v2/ConnectClusterNodes", self._peers, "connect to its peers")

    def compare(self) -> None:
        """Compare the tables with the peers' now and send what they lack; by itself Garage would within ten minutes."""
        self._post("/v2/LaunchRepairOperation?node=self", {"repairType": "tables"}, "compare its tables")
        self.copying.begin(clock())

    def look(self) -> None:
        """Ask what its workers have left, for *copying*."""
        every = {"busyOnly": False, "errorOnly": False}

        def take(body: bytes) -> None:
            self.copying.take(left_in(body), clock())

        self._post("/v2/ListWorkers?node=self", every, "tell of its workers", take)

    def _post(
        self, path: str, body: Sequence[str] | dict[str, Any], what: str, take: Callable[[bytes], None] = lambda _: None
    ) -> None:
        storage = self._storage
        if storage is None or not self._token_file:
            return
        kind = path[4:].partition("?")[0]
        try:
            token = Path(self._token_file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            self._failed(kind, f"cannot read the token of the storage: {error}")
            return

        def done(outcome: Outcome) -> None:
            code, answer = http_answer(outcome.data) if outcome.kind is Kind.ANSWERED else (0, b"")
            if code == 200:
                take(answer)
            else:
                self._failed(kind, f"the storage did not {what}: {code or outcome.kind.value}")

        request = http_request(
            f"{storage.admin_address}:{storage.admin_port}",
            path,
            method="POST",
            token=token,
            body=json.dumps(body).encode(),
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
