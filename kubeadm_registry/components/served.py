"""What the proxies serve and trust: a renewed certificate, and another CA, reach them while they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
            shown = certificates.ask(host, "show")
        except Error as error:
            raise Error(f"cannot determine which certificate is served: {error.message}", host=host.name) from error
        if stale := certificates.unloaded(shown):
            return f"{host.name} {stale}"
        return f"cannot determine what is served: {'; '.join(shown['trouble'])}" if shown["trouble"] else None

    def apply(self, host: Host) -> None:
        """Load it where another one is served. Raises Error (CertificateNotLoaded), CommandTimeout."""
        trouble = certificates.ask(host, "load")["trouble"]
        if trouble:
            raise Error(
                f"the proxies did not load {paths.NODE_PEM}: {'; '.join(trouble)}", host=host.name,
                hint="run `systemctl reload 'kubeadm-registry-haproxy@*'` on this node",
                code="CertificateNotLoaded",
            )  # fmt: skip
        # After a reload a process of before may take connections for a moment.
        wait(host, self.diff, what="the proxies serve the certificate", timeout=SETTLE)


@dataclass(frozen=True, slots=True)
class Trusted:
    """Each proxy that runs trusts the CAs in the file, by which the nodes know each other.

    By a reload, which ends no request. The runtime socket could exchange them as well, but HAProxy 2.6 crashes on
    "commit ssl ca-file" once a certificate was exchanged by "commit ssl cert" (2.6.12, 3 of 3 times).
    """

    title = "reload the proxies, which trust other CAs"

    def diff(self, host: Host) -> str | None:
        """Which of them trust others; None also while no proxy runs."""
        if host.state(paths.CA) is None:
            return None
        stale = certificates.mistrusting(self._asked(host))
        return f"{', '.join(stale)}: reloads, because it trusts other CAs than {paths.CA}" if stale else None

    def _asked(self, host: Host) -> dict[str, Any]:
        try:
            return certificates.ask(host, "show")
        except Error as error:
            raise Error(f"cannot determine which CAs are trusted: {error.message}", host=host.name) from error

    def apply(self, host: Host) -> None:
        """Reload these, one after the other: the other process takes connections meanwhile. Raises CommandTimeout."""
        sockets = dict(zip(paths.HAPROXY_UNITS, paths.HAPROXY_SOCKETS, strict=True))
        for unit in certificates.mistrusting(self._asked(host)):
            host.run("systemctl", "reload", "--", unit)

            def trusts(there: Host, socket: str = sockets[unit]) -> str | None:
                shown = self._asked(there)
                # A process that does not answer is one that has not begun yet.
                return None if shown["trusted"][socket] == shown["ca"] else "it trusts other CAs, or does not answer"

            wait(host, trusts, what=f"{unit} trusts the CAs in {paths.CA}", timeout=SETTLE)
