"""One replica acts at a time: a Lease of coordination.k8s.io, with what fencing a Lease can give.

A holder that cannot renew stops acting by its own clock before another may start. The times of another machine are
never compared with this one's clock: who waits has to have seen no change for the whole duration (as client-go's
leaderelection does). Only the API server's comparison of the resourceVersion decides who wins.

Between a look at the clock and what follows it a process may be stopped, for however long. So every write also names
the resourceVersion that it replaces, which the next leader's writes have changed, and nothing here deletes.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kubeadm_registry.custom_resources.roles import LEASE
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.operator.conditions import micro_time
from kubeadm_registry.retention.order import Caller
from kubeadm_registry.upkeep.api import Answer, Api

log = logging.getLogger("kubeadm_registry.operator")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: another replica takes over a lease that did not change for *duration*. See the properties."""

    duration: float = 15.0

    @property
    def stop(self) -> float:
        """A holder acts for so long after a renewal was sent: well before another one may begin."""
        return self.duration * 2 / 3

    @property
    def retry(self) -> float:
        """From one attempt to the next."""
        return self.duration / 7.5

    @property
    def margin(self) -> float:
        """What must be left for a request to be sent, and the most that it may take."""
        return self.duration / 5


class Lost(BaseException):
    """This replica does not lead, or not for long enough: end the process. No handler of errors may catch it."""

    what = "lost the lease"


class Outdated(Lost):
    """What this replica knows of the cluster is from a later time than the cluster itself: end the process."""

    what = "cannot go on"


class Leadership:
    """The lease in *namespace* as the replica *me* sees it; *api* is its own."""

    def __init__(self, api: Api, namespace: str, me: str, times: Times) -> None:
        self._api = api
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
        self._me = me
        self._times = times
        self._seen = ("", 0.0)
        self._until = 0.0
        self._answered = float("-inf")
        self.epoch = -1
        """How often the lease changed hands before this replica had it; -1 before that."""
        self.uid = ""
        """Of the Lease; another one if somebody made it anew."""

    def as_caller(self) -> Caller:
        """This replica as the executor on the nodes knows it. Raises Lost if it does not lead."""
        self.check()
        return Caller(self.uid, self.epoch)

    @property
    def leads(self) -> bool:
        """Whether this replica may act now."""
        return time.monotonic() < self._until

    @property
    def in_touch(self) -> bool:
        """Whether the API server answered lately, so that this replica could lead."""
        return time.monotonic() - self._answered < 3 * self._times.duration

    def check(self) -> None:
        """Raise Lost unless this replica leads for long enough to send one more request. Call it just before."""
        if time.monotonic() + self._times.margin >= self._until:
            raise Lost("the lease was not renewed in time")

    def attempt(self) -> bool:
        """Take or renew the lease; whether that was confirmed. Raises Lost if another replica has it by now."""
        asked = time.monotonic()  # before the request: an answer may be late, and the right must never outlive it
        answer = self._api.get(self._path, by=asked + self._times.margin)
        if answer.status != http.HTTPStatus.OK:
            # It is part of the manifests, because the right to create cannot be narrowed by name.
            log.warning("cannot read the lease %s: %s", self._path, answer.failure)
            return False
        self._answered = asked
        lease = json.loads(answer.body)
        spec: dict[str, Any] = lease.setdefault("spec", {})
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, asked)
        holder = spec.get("holderIdentity") or ""
        if holder != self._me:
            if self.epoch >= 0:
                raise Lost(f"{holder or 'no replica'} has the lease")
            if holder and asked - self._seen[1] < max(self._times.duration, float(spec.get("leaseDurationSeconds", 0))):
                return False
            spec |= {"acquireTime": micro_time(), "leaseTransitions": spec.get("leaseTransitions", 0) + 1}
        elif self.epoch >= 0 and spec.get("leaseTransitions") != self.epoch:
            raise Lost("another replica of the same name has the lease")
        elif self.epoch < 0:  # a process before this one, of the same name: what it began is not ours
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
        spec |= {
            "holderIdentity": self._me,
            "renewTime": micro_time(),
            "leaseDurationSeconds": max(1, round(self._times.duration)),
        }
        answer = self._put(lease)
        if answer.status != http.HTTPStatus.OK:
            return False
        lease = json.loads(answer.body)
        self.epoch, self.uid = lease["spec"]["leaseTransitions"], lease["metadata"]["uid"]
        self._seen = (lease["metadata"]["resourceVersion"], asked)
        self._until = asked + self._times.stop
        return True

    def stop_acting(self) -> None:
        """From now on ``check`` raises Lost."""
        self._until = 0.0

    def release(self) -> None:
        """Let another replica begin at once. Nothing of this one may be under way any more."""
        self.stop_acting()
        answer = self._api.get(self._path, by=time.monotonic() + self._times.margin)
        if answer.status == http.HTTPStatus.OK:
            lease = json.loads(answer.body)
            if lease["spec"].get("holderIdentity") == self._me and lease["spec"]["leaseTransitions"] == self.epoch:
                lease["spec"] |= {"holderIdentity": "", "renewTime": micro_time(), "leaseDurationSeconds": 1}
                self._put(lease)

    def _put(self, lease: dict[str, Any]) -> Answer:
        return self._api.send("PUT", self._path, json.dumps(lease).encode(), seconds=self._times.margin)

    async def hold(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then do *work* while it is held. Returns when the work ends. Raises Lost."""
        # A thread of its own: one that waited for others would lose the lease.
        with ThreadPoolExecutor(1, "lease") as thread:
            while not await self._quietly(thread):
                await asyncio.sleep(self._times.retry)
            log.info("%s leads, epoch %d", self._me, self.epoch)
            task = asyncio.ensure_future(work())
            try:
                while not (await asyncio.wait({task}, timeout=self._times.retry))[0]:
                    if not await self._quietly(thread) and not self.leads:
                        raise Lost("the lease was not renewed in time")
                await task
            finally:
                task.cancel()

    async def _quietly(self, thread: ThreadPoolExecutor) -> bool:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, self.attempt)
        except ConnectionFailed as error:
            log.warning("cannot renew the lease: %s", error.message)
            return False
