"""Requests with retention's login, as its user on a server sends them: one, or one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubeadm_registry import paths, secrets
from tests.lab import images
from tests.lab.host import Host
from tests.lab.registry import Registry
from tests.lab.writing import Push, Pushes, manifest

PATIENCE = 3.0
"""Seconds that one request may take."""
#: Reads an order, a line of JSON, and becomes its user; then answers each further line, or pushes until there is one.
SCRIPT = textwrap.dedent("""
    import base64, encodings.idna, http.client, json, os, ssl, sys, threading, time  # all now: root alone may read them
    order = json.loads(sys.stdin.readline())
    tls = ssl.create_default_context(cadata=order["ca"])
    os.setuid(order["user"])
    login = base64.b64encode(f"retention:{order['password']}".encode()).decode()

    def ask(method, path, body, terms):
        begun, status, said = time.monotonic(), 0, ""
        where = (order["address"], order["port"])
        connection = http.client.HTTPSConnection(*where, timeout=order["patience"], context=tls)
        try:
            connection.putrequest(method, path)
            connection.putheader("Authorization", f"Basic {login}")
            connection.putheader("Content-Type", order["type"])
            connection.putheader("Accept", order["type"])
            connection.putheader("Content-Length", str(len(body)))
            for term in terms:
                connection.putheader("X-Registry-Term", term)
            connection.endheaders(body.encode())
            answer = connection.getresponse()
            status, said = answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            said = repr(error)
        connection.close()
        return begun, time.monotonic(), status, said

    if "path" in order:
        print(json.dumps(ask(order["method"], order["path"], order["body"], order["terms"])))
        sys.exit()
    done, ended = [], threading.Event()

    def go():
        number = 0
        while not ended.is_set():
            tag = f"{order['prefix']}-{number}"
            body = json.dumps({**order["manifest"], "annotations": {"tag": tag}})
            begun, end, status, said = ask("PUT", f"/v2/{order['repository']}/manifests/{tag}", body, order["terms"])
            done.append((tag, begun, end, status, said))
            number += 1
            ended.wait(0.05)

    worker = threading.Thread(target=go)
    worker.start()
    while not any(status == 201 for _, _, _, status, _ in done):
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.read()
    ended.set()
    worker.join()
    print(json.dumps(done))
""")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status 0 and the reason if nothing did. *begun*: seconds of the clock that all hosts share."""

    begun: float
    status: int
    said: str


class Executor:
    """Sends requests from *host* to itself, or to *address*, as retention's user or as root.

    Its processes belong to this machine, so they go on while the host stands still, and no agent ends them.
    """

    def __init__(self, registry: Registry, host: Host, *, address: str = paths.LOOPBACK, root: bool = False) -> None:
        self._host = host
        user = "0" if root else host.sh("id", "-u", paths.user(paths.RETENTION_NAME)).stdout
        known = json.loads(registry.servers["h1"].sh("cat", secrets.PATH).stdout)
        self._order: dict[str, Any] = {
            "ca": registry.ca.read_text(), "user": int(user), "password": known["retention_password"],
            "address": address, "port": paths.REGISTRY_PORT, "patience": PATIENCE, "type": images.MANIFEST,
        }  # fmt: skip

    def _start(self, **order: Any) -> subprocess.Popen[str]:
        argv = self._host.network_argv(sys.executable, "-I", "-c", SCRIPT)
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps({**self._order, **order}) + "\n")
        process.stdin.flush()
        return process

    def ask(self, method: str, path: str, *terms: object, body: str = "") -> Answer:
        """One request, with a header for each of *terms*."""
        with self._start(method=method, path=path, terms=[str(one) for one in terms], body=body) as process:
            said, _ = process.communicate(timeout=30)
        begun, _, status, text = json.loads(said)
        return Answer(begun, status, text)

    @contextmanager
    def pushes(self, image: images.Image, repository: str, prefix: str, term: int) -> Iterator[Pushes]:
        """Push manifests under *term* for the length of a ``with``. *image* is in *repository* already."""
        found = Pushes()
        document = json.loads(manifest(image))
        with self._start(manifest=document, repository=repository, prefix=prefix, terms=[str(term)]) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                yield found
                said, _ = process.communicate(timeout=30)
                found.done = [Push(*one) for one in json.loads(said)]
            finally:
                process.kill()
