"""The certificate that the proxies serve: a renewed one reaches them while they run."""

from __future__ import annotations

from dataclasses import dataclass

from kubeadm_registry import certificates, paths
from kubeadm_registry.engine.changes import wait
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host

#: Seconds.
SETTLE = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """Each proxy that runs serves the certificate in the file, and a handshake shows it.

    The file alone is read when a proxy starts. Loaded by the runtime socket, it costs no connection.
    """

    title = "load the certificate into the running proxies"

    def diff(self, host: Host) -> str | None:
        """What is served in place of it; None also while no proxy runs."""
        if host.state(paths.NODE_PEM) is None:
            return None  # not issued yet, in a dry-run on a host that may lack Python: the proxies start with it
        try:
            shown = certificates.ask(host.query, "show")
        except Error as error:
            raise Error(f"cannot determine which certificate is served: {error.message}", host=host.name) from error
        if stale := certificates.unloaded(shown):
            return f"{host.name} {stale}"
        return f"cannot determine what is served: {'; '.join(shown['trouble'])}" if shown["trouble"] else None

    def apply(self, host: Host) -> None:
        """Load it where another one is served. Raises Error (CertificateNotLoaded), CommandTimeout."""
        trouble = certificates.ask(host.run, "load")["trouble"]
        if trouble:
            raise Error(
                f"the proxies did not load {paths.NODE_PEM}: {'; '.join(trouble)}", host=host.name,
                hint="run `systemctl reload 'kubeadm-registry-haproxy@*'` on this node",
                code="CertificateNotLoaded",
            )  # fmt: skip
        # After a reload a process of before may take connections for a moment.
        wait(host, self.diff, what="the proxies serve the certificate", timeout=SETTLE)
