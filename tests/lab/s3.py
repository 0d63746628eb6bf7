"""The storage behind the frontend, as somebody with its keys sees it: what the registry believes it has can be lost.

Source of the signatures: "Signature Version 4" of the S3 API, with an unsigned payload.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.secrets import PATH, Secrets
from tests.lab.command import LabError
from tests.lab.registry import SERVERS, Registry

#: Sends the request that stands on standard input, and says the status and the body.
_SEND = """
import http.client, json, sys
host, port, method, target, headers = json.load(sys.stdin)
connection = http.client.HTTPConnection(host, port, timeout=10)
connection.request(method, target, headers=headers)
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode())
"""
_UNSIGNED = "UNSIGNED-PAYLOAD"


def lose(registry: Registry, digest: str) -> None:
    """Delete the bytes of the blob *digest* in the storage, and nothing else. Raises LabError if there are none."""
    wanted = digest.partition(":")[2]
    found = [key for key in _keys(registry) if wanted in key and not key.endswith("/link")]
    if not found:
        raise LabError(f"the storage has no bytes of {digest}")
    for key in found:
        _call(registry, "DELETE", key, {})


def _keys(registry: Registry) -> list[str]:
    found: list[str] = []
    query = {"list-type": "2"}
    while True:
        page = _call(registry, "GET", "", query)
        found += re.findall("<Key>([^<]+)</Key>", page)
        following = re.search("<NextContinuationToken>([^<]+)<", page)
        if following is None:
            return found
        query = {"list-type": "2", "continuation-token": following[1]}


def _call(registry: Registry, method: str, key: str, query: Mapping[str, str]) -> str:
    host = registry.servers[SERVERS[0]]
    secrets = Secrets.from_json(host.sh("cat", PATH).stdout.encode())
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/garage/s3/aws4_request"
    at = endpoint(paths.S3_ADDRESS, paths.S3_PORT)
    path = quote(f"/registry-{registry.frontend}/{key}")
    asked = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
    signed = {"host": at, "x-amz-content-sha256": _UNSIGNED, "x-amz-date": now}
    names = ";".join(signed)
    lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
    canonical = "\n".join((method, path, asked, lines, names, _UNSIGNED))
    to_sign = "\n".join(("AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    signature = f"AWS4{secrets.s3_secret_key}".encode()
    for part in (*scope.split("/"), to_sign):
        signature = hmac.digest(signature, part.encode(), "sha256")
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={secrets.s3_key_id}/{scope}, SignedHeaders={names}, Signature={signature.hex()}"
    )
    target = f"{path}?{asked}" if asked else path
    request = (paths.S3_ADDRESS, paths.S3_PORT, method, target, {**signed, "Authorization": authorization})
    answer = subprocess.run(
        host.network_argv(sys.executable, "-c", _SEND), input=json.dumps(request), capture_output=True, text=True,
        timeout=30, check=True,
    ).stdout  # fmt: skip
    status, _, body = answer.partition("\n")
    if not status.startswith("2"):
        raise LabError(f"{method} {target}: {status} {body}")
    return body
