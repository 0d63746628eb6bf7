"""The proxies of fake servers as far as they close pushes, and their logs as far as these name blobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.agent import bucket, pushes
from kubeadm_registry.components import haproxy
from kubeadm_registry.images import push_log
from kubeadm_registry.transport import host_python
from tests.unit.fakes import FakeTransport


def listing(*lines: str) -> Callable[[tuple[str, ...], bytes], str]:
    """Answers for a bucket with these *lines*, on a node without an etcd."""
    return lambda _, stdin: "end" if "latency" in json.loads(stdin) else "\n".join([*lines, "end"])


@dataclass
class FakePushes:
    """*closed*: for how many seconds at which server; *relied*: ``REPOSITORY DIGEST`` lines of a server's log."""

    servers: Mapping[str, FakeTransport]
    closed: dict[str, float] = field(default_factory=dict)
    relied: dict[str, list[str]] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    #: Writing requests in flight, each time that a server is asked.
    writes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, server in self.servers.items():
            call = host_python.command(pushes)
            server.answer(*call, with_=self._answer(name))
            for verb in ("close", "open"):
                server.answer(*call, verb, with_=self._answer(name), act=f"{verb} pushes")
            server.answer("sh", "-c", push_log.ASK, with_=self._log(name))
            server.answer(*host_python.command(bucket), with_=listing())
            server.answer("systemctl", "show", "--property=InvocationID", "--value", "--", with_="1\n")
            server.put(f"{paths.ETC}/RUNBOOK", b"")  # so that the directory is there

    def _answer(self, name: str) -> Callable[[tuple[str, ...], bytes], str]:
        def answer(argv: tuple[str, ...], _: bytes) -> str:
            verb, seconds = argv[6], float(argv[8])
            if verb != "show":
                self.closed[name] = seconds if verb == "close" else 0.0
                self.history.append(f"{verb} {name}")
            left = dict.fromkeys((haproxy.PUSHES_MAP, *paths.HAPROXY_SOCKETS), self.closed.get(name, 0.0))
            writes = self.writes.pop(0) if self.writes else 0
            return json.dumps({"left": left, "writes": writes, "old": False, "trouble": []})

        return answer

    def _log(self, name: str) -> Callable[[tuple[str, ...], bytes], str]:
        def answer(argv: tuple[str, ...], _: bytes) -> str:
            self.history.append(f"log {name} {argv[4]}")
            return "\n".join(["begins 1700000000", *self.relied.get(name, [])])

        return answer
