"""One HTTPS request to a server of the registry: of any method, with any login, trusting whom one likes."""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from tests.lab.images import MANIFEST
from tests.lab.registry import Login, Registry

CANARY = f"/v2/{canary.REPOSITORY}/manifests/{canary.MANIFEST.digest}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    registry: Registry,
    method: str,
    path: str,
    *,
    login: Login | None = None,
    address: str = "",
    port: int = paths.REGISTRY_PORT,
    trust: ssl.SSLContext | None = None,
    body: bytes | None = None,
    timeout: float = 10,
) -> Answer:
    """Send one request from the lab's network to *address* (the VIP) on a new connection; *timeout* is in seconds.

    Raises OSError, of which ssl.SSLError is one, and http.client.HTTPException.
    """
    headers = {"Accept": MANIFEST, "Content-Type": MANIFEST}
    if login is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(login.pair.encode()).decode()}"
    trust = trust or registry.tls()
    with registry.lab.network():
        connection = http.client.HTTPSConnection(address or registry.vip, port, context=trust, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
