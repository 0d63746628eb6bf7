"""The executor on three servers that are not there: systemd as far as an order needs it, and the real executor."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.access import executor
from kubeadm_registry.components import pulls, retention
from kubeadm_registry.components.executor_files import RESULT, order_path, result_path
from kubeadm_registry.errors import Error
from kubeadm_registry.executor.run import Executor
from kubeadm_registry.images.pool import Connect
from kubeadm_registry.retention import Reason
from kubeadm_registry.retention.order import Order
from tests.unit.fake_cluster import FakeCluster, fixed_secrets


@dataclass
class FakeExecutor:
    """The node of *servers* that holds the *lease* carries out what it is told to, at *connect* and *clock*."""

    servers: FakeCluster
    connect: Connect
    clock: Callable[[], float]
    lease: str | None = None
    results: dict[str, bytes] = field(default_factory=dict)
    log: str = ""
    doubted: tuple[Reason, ...] = ()
    tell: Callable[[str], None] = lambda _: None
    """Hears a line for each image."""

    def __post_init__(self) -> None:
        numbers = itertools.count()
        for name, server in self.servers.servers.items():
            server.answer(
                "sh", "-c", executor._LOOK, "look", paths.AGENT_STATE, retention.INSTANCES,
                with_=lambda *_, name=name: self._look(name),
            )  # fmt: skip
            server.answer(
                "systemctl", "start", "--no-block", "--",
                with_=lambda argv, _, name=name: self._start(name, argv[-1], next(numbers)), act="start",
            )  # fmt: skip
            server.answer("sh", "-c", executor._STATE, "state", with_=lambda *_: self._state())
            server.answer(
                "runuser", "-u", retention.USER, "--", "cat", with_=lambda argv, _: self.results.get(argv[-1], 1)
            )
            server.answer("sh", "-c", executor._TIDY, "tidy", retention.ORDERS)
            server.answer("runuser", "-u", pulls.USER, "--", with_=1)  # nothing was recorded
            server.put(f"{paths.UNITS}/{retention.TEMPLATE}", b"")
            server.users[retention.USER] = {retention.USER}
            server.groups.add(retention.USER)
            server.put(f"{retention.ORDERS}/README", b"")  # so that the directory is there

    def _look(self, name: str) -> str:
        role = "writer" if name == self.lease else "standby"
        state = {"time": self.clock(), "writer": {"mode": "any", "role": role, "term": 7}}
        return f"---\n{self.clock()}\n{json.dumps(state)}\n"

    def _start(self, name: str, unit: str, number: int) -> str:
        found = re.search(r"@([0-9a-f]{64})\.service", unit)
        assert found is not None, unit
        order = Order.parse(self.servers.servers[name].content(order_path(found[1])))
        names = tuple(self.servers.servers)
        with self.connect() as registry:
            work = Executor(
                registry, fixed_secrets(names).retention_key, name, lambda: None, tell=self._tell, clock=self.clock,
                doubts=lambda: self.doubted,
            )  # fmt: skip
            try:
                said = {"run": work.carry_out(order).to_dict()}
            except Error as error:
                said = {"error": error.message, "code": error.code, "hint": error.hint}  # type: ignore[dict-item]
        self.results[result_path(found[1])] = RESULT.render({"order": found[1], "invocation": f"run {number}", **said})
        return ""

    def _tell(self, line: str) -> None:
        self.log = line
        self.tell(line)

    def _state(self) -> str:
        return f"ActiveState=inactive\nResult=success\nExecMainStatus=0\n---\n{self.log}\n"
