"""What Garage's workers say of their work, and how quickly they are to do it. Imports nothing that takes long.

Source: the admin API v2 of Garage, https://garagehq.deuxfleurs.fr/api/garage-admin-v2.html
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from kubeadm_registry.agent.document import Left, Queues

BEGINS = 8.0  # seconds in which the work shows that a comparison of tables brings: its blocks wait for 4 s before
#: Garage's own pace is one worker that rests twice as long as it works.
GENTLE = {"resync-worker-count": "1", "resync-tranquility": "2"}
QUICK = {"resync-worker-count": "4", "resync-tranquility": "0"}


@dataclass(frozen=True)
class Work:
    """What Garage's workers say: what they have left, and how many blocks they have failed to get."""

    left: Left
    failed: int


def work_in(body: bytes) -> Optional[Work]:
    """What the workers in an answer of ListWorkers have left, and cannot get; None if it is no such answer.

    Parts of tables that the node has not compared with the others are in the queues of the workers whose names end in
    ``sync``, blocks that it lacks in the one queue of the workers called ``Block resync worker``.
    """
    try:
        [workers] = json.loads(body)["success"].values()
        tables = sum(int(one["queueLength"] or 0) for one in workers if one["name"].endswith(" sync"))
        queued, failed = _blocks([one for one in workers if one["name"].startswith("Block resync worker")])
        return Work({"blocks": max(queued, failed), "tables": tables}, failed)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _blocks(workers: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many blocks the queue that *workers* share has for now, and how many it has failed to get.

    It also has blocks for later: four seconds after a push each is looked for once more, and ten minutes after a
    deletion it is removed (Garage 2.3, block/manager.rs). All workers are idle then.
    """
    working = [one for one in workers if one["queueLength"] is not None]  # the others are switched off
    queued = max((int(one["queueLength"]) for one in working if one["state"] != "idle"), default=0)
    # An idle worker tells what was so when it became idle. A new failure wakes it, a success does not.
    failed = min((int(one["persistentErrors"]) for one in working), default=0)
    return queued, failed


def lost_in(body: bytes, copies: int, others: Collection[str]) -> Optional[int]:
    """How many of this node's blocks are lost, by an answer of ListBlockErrors for all nodes; None if it does not say.

    A block is kept by *copies* nodes. One that so many have failed to get is on none of them. *others* are the ids of
    the other nodes; one that does not answer may have them.
    """
    try:
        said = json.loads(body)
        if said["error"]:
            return None
        failed = {node: {str(one["blockHash"]) for one in listed} for node, listed in said["success"].items()}
        count = Counter(block for blocks in failed.values() for block in blocks)
        [own] = failed.keys() - set(others)
        return sum(count[block] >= copies for block in failed[own])
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def queues_in(body: bytes) -> Optional[Queues]:
    """What an answer of GetNodeStatistics says; None if it is no such answer, or Garage is older than 2.3."""
    try:
        [node] = json.loads(body)["success"].values()
        blocks, tables = node["blockManagerStats"], node["tableStats"]
        return {
            "blocks": int(blocks["rcEntries"]),
            "errors": int(blocks["resyncErrors"]),
            "entries": sum(int(one["insertQueueLen"]) for one in tables),
            "merkle": sum(int(one["merkleQueueLen"]) for one in tables),
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
