"""The certificate that the proxies serve: a renewed one reaches them while they run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.agent import served as script
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import agent, haproxy
from kubeadm_registry.errors import Error
from kubeadm_registry.host import Host, Result


@cache
def source() -> str:
    """What the host's Python runs."""
    return Path(script.__file__).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Served:
    """Each proxy that runs serves the certificate in the file, and a handshake shows it.

    The file alone is read when a proxy starts. Loaded by the runtime socket, it costs no connection.
    """

    cluster: Cluster
    title = "load the certificate into the running proxies"

    def diff(self, host: Host) -> str | None:
        """Which proxy serves another one; None also while none runs."""
        shown = self._look(host, "show", host.query)
        if shown["file"] is None:
            return None  # not issued yet, in a dry-run: the proxies start with it
        stale = [path for path, has in shown["proxies"].items() if has not in (None, shown["file"])]
        if stale:
            return f"{', '.join(stale)}: served is an earlier certificate than that in {paths.NODE_PEM}"
        if shown["trouble"]:
            return f"the certificate that is served cannot be seen: {'; '.join(shown['trouble'])}"
        if any(one != shown["file"] for one in shown["handshakes"]):
            return f"a handshake on port {paths.REGISTRY_PORT} shows another certificate than {paths.NODE_PEM}"
        return None

    def apply(self, host: Host) -> None:
        """Load it where another one is served. Raises Error (CertificateNotLoaded)."""
        shown = self._look(host, "load", host.run)
        if shown["trouble"]:
            raise Error(
                f"the proxies do not take up {paths.NODE_PEM}: {'; '.join(shown['trouble'])}", host=host.name,
                hint="they read it when they start: `systemctl reload 'kubeadm-registry-haproxy@*'` on this server",
                code="CertificateNotLoaded",
            )  # fmt: skip

    def _look(self, host: Host, verb: str, call: Any) -> dict[str, Any]:
        where = (paths.NODE_PEM, paths.LOOPBACK, str(paths.REGISTRY_PORT), *haproxy.SOCKETS)
        result: Result = call(agent.python(self.cluster, host), "-I", "-c", source(), verb, *where, timeout=60)
        try:
            shown: dict[str, Any] = json.loads(result.stdout)
        except ValueError as error:
            words = result.stderr.decode(errors="replace").strip().splitlines()
            raise Error(
                f"the certificate that is served cannot be seen: {words[-1] if words else error}", host=host.name
            ) from error
        return shown
