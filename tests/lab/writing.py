"""Pushes manifests all the time, and notes what became of each: behind the proxy, or as any client does."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from kubeadm_registry import paths
from kubeadm_registry.errors import RegistryError
from tests.lab import images
from tests.lab.host import Host
from tests.lab.registry import Registry

EVERY = 0.05
"""Seconds between the end of a push and the next one."""
PATIENCE = 3.0
"""Seconds that one push may take."""
#: Says "ready" after the first success. Root may talk to the frontend of its host, and it asks for no login there.
SCRIPT = textwrap.dedent("""
    import http.client, json, sys, threading, time
    address, port, repository, prefix, every, patience = sys.argv[1:]
    manifest = json.loads(sys.stdin.readline())
    done, ended = [], threading.Event()

    def push(tag):
        body = json.dumps({**manifest, "annotations": {"tag": tag}}).encode()
        begun, status = time.monotonic(), 0
        connection = http.client.HTTPConnection(address, int(port), timeout=float(patience))
        try:
            headers = {"Content-Type": manifest["mediaType"]}
            connection.request("PUT", f"/v2/{repository}/manifests/{tag}", body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            pass
        connection.close()
        done.append((tag, begun, time.monotonic(), status))

    def go(worker):
        number = 0
        while not ended.is_set():
            push(f"{prefix}-{worker}-{number}")
            number += 1
            ended.wait(float(every))

    workers = [threading.Thread(target=go, args=(one,)) for one in range(WORKERS)]
    for one in workers:
        one.start()
    while not any(status == 201 for *_, status in done):
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.read()
    ended.set()
    for one in workers:
        one.join()
    print(json.dumps(done))
""").replace("WORKERS", "3")


@dataclass(frozen=True, slots=True)
class Push:
    """One push of a manifest under a tag of its own; times are seconds of the clock that all hosts share."""

    tag: str
    begun: float
    ended: float
    status: int
    """Of the answer; 0 if there was none."""
    error: str = ""
    """Why the client gave up, where it says."""

    @property
    def accepted(self) -> bool:
        """Whether the registry said that it has it."""
        return self.status == 201


@dataclass
class Pushes:
    """What came of all pushes, once the ``with`` has ended."""

    done: list[Push] = field(default_factory=list)

    @property
    def accepted(self) -> list[Push]:
        """Those that the registry said it has."""
        return [one for one in self.done if one.accepted]


def manifest(image: images.Image, tag: str = "") -> bytes:
    """The manifest of *image* as it is pushed under *tag*: each has a digest of its own."""
    document = {**json.loads(image.manifest), "mediaType": images.MANIFEST}
    return json.dumps({**document, "annotations": {"tag": tag}} if tag else document).encode()


@contextmanager
def behind_the_proxy(host: Host, image: images.Image, repository: str, prefix: str) -> Iterator[Pushes]:
    """Push to the frontend process of *host* itself for the length of a ``with``, whatever gate and proxy say.

    The client belongs to this machine, so it goes on while the host stands still. *image* is in *repository* already.
    Raises AssertionError if not even the first pushes get through.
    """
    words = (paths.LOOPBACK, paths.FRONTEND_PORT, repository, prefix, EVERY, PATIENCE)
    argv = host.network_argv(sys.executable, "-I", "-c", SCRIPT, *map(str, words))
    pushes = Pushes()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        try:
            client.stdin.write(manifest(image).decode() + "\n")
            client.stdin.flush()
            assert client.stdout.readline() == "ready\n"
            yield pushes
            said, _ = client.communicate(timeout=30)
            pushes.done = [Push(*one) for one in json.loads(said)]
        finally:
            client.kill()


@contextmanager
def through_the_gate(
    registry: Registry, hosts: list[Host], image: images.Image, repository: str, prefix: str
) -> Iterator[Pushes]:
    """Push to the registry's address of each of *hosts* in turn, as any client with the login for it does."""
    pushes, ended = Pushes(), threading.Event()

    def push() -> None:
        number = 0
        with registry.lab.network(), ExitStack() as stack:
            made = [images.client(registry, address=host.address, role="push", timeout=PATIENCE) for host in hosts]
            clients = [stack.enter_context(one) for one in made]
            while not ended.is_set():
                tag, begun, status, why = f"{prefix}-{number}", time.monotonic(), 201, ""
                at = clients[number % len(clients)]
                try:
                    at.push_manifest(repository, tag, manifest(image, tag), images.MANIFEST)
                except RegistryError as error:
                    status, why = 0, error.message
                pushes.done.append(Push(tag, begun, time.monotonic(), status, why))
                number += 1
                ended.wait(EVERY)

    worker = threading.Thread(target=push)
    worker.start()
    try:
        yield pushes
    finally:
        ended.set()
        worker.join()


def tags(registry: Registry, repository: str) -> set[str]:
    """All tags of *repository*, each of them read, as the registry has them through the VIP."""
    with registry.lab.network(), images.client(registry, role="push") as at:
        return {tag for tag in at.tags(repository) if at.manifest(repository, tag) is not None}
