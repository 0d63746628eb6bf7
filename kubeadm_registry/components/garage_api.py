"""Garage's admin API, of one host. Source: https://garagehq.deuxfleurs.fr/api/garage-admin-v2.html"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kubeadm_registry import paths
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.errors import CommandFailed, NotYetKnown
from kubeadm_registry.transport.host import Host

NAME = "garage"
ETC = f"{paths.ETC}/garage"
CONFIG = f"{ETC}/garage.toml"
#: By the program that runs: the archive is made where no bundle is at hand.
INSPECT = (
    f'g="$(readlink "/proc/$(systemctl show --property=MainPID --value {paths.unit(NAME)})/exe")"; '
    "for what in status 'layout show' 'stats' 'worker list' 'block list-errors'; do echo \"=== garage $what\"; "
    f'timeout 10 "$g" -c {CONFIG} $what 2>&1; done'
)


class Api:
    """Garage's admin API of one host, called through the program itself: no token in argv, no HTTP client needed."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        self._argv = (cluster.program(NAME).executable, "-c", CONFIG, "json-api")
        self._host = host

    def ask(self, endpoint: str, payload: object = None) -> Any:
        """The answer of a reading *endpoint* as plain data. Raises NotYetKnown, with Garage's words."""
        try:
            return self._call(self._host.query, endpoint, payload)
        except CommandFailed as error:
            raise NotYetKnown(f"Garage does not respond to {endpoint} yet: {error.message}", host=error.host) from error

    def do(self, endpoint: str, payload: object = None) -> Any:
        """The answer of an *endpoint* that changes something. Raises CommandFailed."""
        return self._call(self._host.run, endpoint, payload)

    def _call(self, call: Callable[..., Any], endpoint: str, payload: object) -> Any:
        stdin = b"" if payload is None else json.dumps(payload).encode()
        result = call(*self._argv, endpoint, *(() if payload is None else ("-",)), stdin=stdin, timeout=30)
        if not result.ok:
            raise CommandFailed(result, host=self._host.name)
        return json.loads(result.stdout)
