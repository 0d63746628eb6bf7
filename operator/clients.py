"""Nodes of Kubernetes that are to pull from the registry, as new workers: each is configured as by `mirrors apply`.

A Node with the label and its SSH host key in the annotation is such a one. A node of the registry goes there by the key
that the nodes have for machines that may become one of them (`operator install --replace-nodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kubeadm_registry.access.collecting import POINT, Member, Values
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.operator.objects import Object, Objects, annotation
from kubeadm_registry.operator.replacement import HOST_KEY, annotate
from kubeadm_registry.printable import counted
from kubeadm_registry.transport.ssh import UNREACHABLE
from kubeadm_registry.upkeep import nodes

KIND = "ClientNodes"
#: Seconds until a node is configured again: where that failed, and where it did not and may have been installed anew.
AGAIN, DAILY = 600.0, 86400.0
#: While containerd does not start on so many of them, no other node is begun.
MOST_FAILURES = 3
_RESTARTS = frozenset({"ContainerdRestart", "ContainerdPlugin"})


@dataclass(frozen=True, slots=True)
class Client:
    """A Node: its *name*, its first InternalIP (empty: it has none), and its *host_key* (empty: none is known)."""

    name: str
    address: str
    host_key: str


@dataclass(frozen=True, slots=True)
class _Done:
    """What was done for a client, by what, and when; *code* is why it failed, empty if it did not."""

    of: tuple[Client, object]
    at: float
    code: str = ""
    message: str = ""


@dataclass(slots=True)
class Clients:
    """What this replica has done for client nodes; another one does it again, which changes nothing."""

    _done: dict[str, _Done] = field(default_factory=dict)
    _known: bool = False

    def turn(
        self, objects: Objects, cluster: RegistryCluster, ca: str, members: Sequence[Member] | None,
        lead: Callable[[], object], now: float,
    ) -> Iterator[tuple[str, Verdict]]:  # fmt: skip
        """Have each client configured that is due, one at a time; each with what came of it, if that is news.

        *ca* is the CA that they are to trust; *members* are None without a key for them. *lead* is called before each,
        and raises Lost. Raises ConnectionFailed.
        """
        found = {one.name: one for one in map(_client, nodes.clients(objects.get, cluster.spec))}
        self._known = self._known or bool(found)
        self._done = {name: done for name, done in self._done.items() if name in found}
        broken = {name for name, done in self._done.items() if done.code in _RESTARTS}
        for name, client in found.items():
            wanted = (client, (cluster.spec, ca))
            before = self._done.get(name)
            if before is not None and before.of == wanted and now - before.at < (AGAIN if before.code else DAILY):
                continue
            if len(broken) >= MOST_FAILURES and name not in broken:
                continue
            lead()
            try:
                said = _configured(client, members)
            except Error as error:
                broken = broken | {name} if error.code in _RESTARTS else broken - {name}
                self._done[name] = _Done(wanted, now, error.code, error.advice)
                if before is None or before.code != error.code:
                    yield name, Verdict(KIND, False, error.code, error.advice)
                continue
            self._done[name] = _Done(wanted, now)
            broken = broken - {name}
            if said["changes"] or said["notes"] or (before is not None and before.code):
                text = "; ".join(("containerd pulls through the virtual IP", *said["notes"]))
                yield name, Verdict(KIND, True, "Configured", text)

    def verdict(self) -> Verdict | None:
        """The condition; None where no Node ever had the label."""
        if not self._known:
            return None
        failed = {name: done for name, done in self._done.items() if done.code}
        if not failed:
            text = f"configured to pull by the virtual IP: {counted(len(self._done), 'client node')}"
            return Verdict(KIND, True, "Configured", text)
        name, first = min(failed.items())
        which = f"{name} is not configured:"
        if len(failed) > 1:
            which = f"{name} and {len(failed) - 1} more are not configured; {name}:"
        return Verdict(KIND, False, first.code, f"{which} {first.message}")


def _client(found: Object) -> Client:
    return Client(found["metadata"]["name"], next(iter(nodes.addresses(found)), ""), annotation(found, HOST_KEY))


def _configured(client: Client, members: Sequence[Member] | None) -> Values:
    """The answer of the first of *members* that reaches *client*. Raises Error."""
    if not client.address:
        raise Error("its Node has no InternalIP", code="AddressMissing", hint="see `kubectl get nodes -o wide`")
    if not client.host_key:
        raise Error("its SSH host key is not known", code="HostKeyMissing", hint=annotate(client.name))
    if members is None:
        raise Error(
            "the operator has no key for the nodes of the registry", code="NoHelper",
            hint="run `kubeadm-registry operator install --replace-nodes`, or `mirrors apply` for it",
        )  # fmt: skip
    last: Error | None = None
    for member in members:
        try:
            return member.do(POINT, name=client.name, address=client.address, hostKey=client.host_key)
        except ConnectionFailed as error:  # it is the member that does not answer
            last = last or error
        except Error as error:
            if error.code != UNREACHABLE:
                raise
            last = error
    raise last or Error("no node answers", code="HelpersSilent", hint="run `kubeadm-registry status`")
