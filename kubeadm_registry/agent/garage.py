"""What the agent asks of its own Garage by its admin interface, and Garage would do by itself only much later.

Source: the admin API v2 of Garage, https://garagehq.deuxfleurs.fr/api/garage-admin-v2.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from kubeadm_registry.agent.config import Config, Peer
from kubeadm_registry.agent.exchange import Exchange, Kind, Outcome, http_answer, http_complete, http_request

DEADLINE = 5.0  # seconds


class Garage:
    """This node's Garage. *failed* is told, with a kind and a sentence, what could not be done."""

    def __init__(self, config: Config, failed: Callable[[str, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._storage = config.storage
        self._token_file = config.garage_admin_token_file
        self._peers = [_address(peer, config.ports.rpc) for peer in config.peers if peer.garage_node_id]
        self._failed = failed

    def connect(self) -> None:
        """Connect to the peers now; by itself Garage would after ten to thirty seconds."""
        if self._peers:
            self._post("/v2/ConnectClusterNodes", self._peers, "connect to its peers")

    def compare(self) -> None:
        """Compare the tables with the peers' now and send what they lack; by itself Garage would within ten minutes."""
        self._post("/v2/LaunchRepairOperation?node=self", {"repairType": "tables"}, "compare its tables")

    def _post(self, path: str, body: Sequence[str] | dict[str, Any], what: str) -> None:
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
            code = http_answer(outcome.data)[0] if outcome.kind is Kind.ANSWERED else 0
            if code != 200:
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
