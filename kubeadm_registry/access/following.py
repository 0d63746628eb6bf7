"""Asks the nodes of a cluster again and again, on connections that stay open; none that is silent holds it up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from kubeadm_registry.access import session
from kubeadm_registry.access.session import Prompts
from kubeadm_registry.config import Node, RegistryCluster
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.transport.host import Host

Seen = TypeVar("Seen")


class Follower(Generic[Seen]):
    """What *ask* says of each node, round by round. It says with ``lost`` whether the connection is to be given up.

    *reached* are connected already; to the others, and to those that are lost, it connects again at each round, asking
    no terminal. Each node has a thread of its own, so one without power holds up nothing but its own answer.
    """

    def __init__(
        self,
        config: RegistryCluster,
        reached: Sequence[Host],
        prompts: Prompts,
        ask: Callable[[Host], Seen],
        lost: Callable[[Seen], bool],
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._ask = ask
        self._lost = lost
        self._hosts: dict[str, Host] = {host.name: host for host in reached}
        self._threads: dict[str, threading.Thread] = {}
        self._answers: dict[str, Seen | str] = {}
        self._closed = False

    def look(self, patience: float) -> tuple[list[Seen], Mapping[str, str]]:
        """What nodes said within *patience* seconds, or after the last round; and why each of the others did not."""
        until = time.monotonic() + patience
        for node in self._config.spec.nodes:
            # An answer that came after the last round is said in this one: who is always slow would never be heard.
            before = self._threads.get(node.name)
            if before is None or not (before.is_alive() or node.name in self._answers):
                self._threads[node.name] = threading.Thread(target=self._one, args=(node,), daemon=True)
                self._threads[node.name].start()
        seen: list[Seen] = []
        silent: dict[str, str] = {}
        for name, thread in self._threads.items():
            thread.join(max(0.0, until - time.monotonic()))
            late = f"no response within {patience:g} s"
            answer = late if thread.is_alive() else self._answers.pop(name, late)
            if isinstance(answer, str):
                silent[name] = answer
            else:
                seen.append(answer)
        return seen, silent

    def _one(self, node: Node) -> None:
        """Ask one node, in its thread."""
        try:
            host = self._hosts.get(node.name) or session.attempt(self._config, node, self._prompts)
            if self._closed:
                host.transport.close()
                return
            self._hosts[node.name] = host
            self._answers[node.name] = answer = self._ask(host)
            if self._lost(answer):
                self._hosts.pop(node.name, host).transport.close()
        except ConnectionFailed as error:
            self._answers[node.name] = f"{error.message} ({error.hint})"

    def close(self) -> None:
        """End all connections; who still waits for an answer gets none."""
        self._closed = True
        for host in tuple(self._hosts.values()):
            host.transport.close()
