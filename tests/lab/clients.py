"""Clients that push images one after another, as people and CI do, and note what became of each."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry import retry
from tests.lab import images, programs
from tests.lab.registry import Registry

#: Seconds that one push may take, also one that is held.
PATIENCE = 360.0
USUAL = ("skopeo", "crane", "client")
EVERY = (*USUAL, "podman", "regctl", "oras")


@dataclass(frozen=True, slots=True)
class Pushed:
    """One push of an image, by which client, with the seconds that it took; *error* is empty if it succeeded."""

    client: str
    repository: str
    image: images.Image
    begin: float
    """In seconds since 1970."""
    seconds: float
    error: str


@dataclass
class Pushing:
    """What came of all pushes, once the ``with`` has ended."""

    done: list[Pushed] = field(default_factory=list)

    @property
    def failed(self) -> list[Pushed]:
        """Those that did not succeed."""
        return [one for one in self.done if one.error]

    def lost(self, registry: Registry) -> list[str]:
        """Those that succeeded and of which not all is there: of each repository the last, which has the tag.

        zot forgets an image whose last tag is given to another one.
        """
        good = {one.repository: one for one in self.done if not one.error}.values()
        return [f"{one.client} {one.repository}" for one in good if images.missing(registry, one.image, one.repository)]

    def __str__(self) -> str:
        names = sorted({one.client for one in self.done})
        parts = []
        for name in names:
            own = [one for one in self.done if one.client == name]
            failed = [one for one in own if one.error]
            slowest = max(one.seconds for one in own)
            parts.append(f"{name}: {len(failed)} of {len(own)} failed, slowest {slowest:.1f} s")
        return "; ".join(parts)


@contextmanager
def pushing(
    registry: Registry,
    directory: Path,
    base: bytes | None = None,
    *,
    every: float = 0.3,
    clients: Sequence[str] = USUAL,
) -> Iterator[Pushing]:
    """Push new images by each of *clients*, for the length of a ``with``, ``every`` seconds after the last.

    Each has a layer of its own, and *base*, a layer that is in the registry already, if it is given.
    """
    result, ended = Pushing(), threading.Event()
    at = f"{registry.vip}:{paths.REGISTRY_PORT}"
    login = registry.login()
    trust = directory / "trust"
    trust.mkdir(parents=True)
    (trust / "ca.crt").write_bytes(registry.ca.read_bytes())
    # skopeo and crane read the same file.
    registry.lab.run(
        "skopeo", "login", "--authfile", directory / "config.json", "--cert-dir", trust, "--username", login.username,
        "--password-stdin", at, stdin=login.password,
    )  # fmt: skip

    def run(*argv: str | Path) -> str:
        env = ("env", f"DOCKER_CONFIG={directory}", f"SSL_CERT_FILE={trust / 'ca.crt'}")
        done = subprocess.run(
            registry.lab.argv(*env, *map(str, argv)), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-300:]}"

    def skopeo(image: images.Image, layout: Path, repository: str) -> str:
        return run(
            "skopeo", "copy", "--quiet", "--insecure-policy", "--authfile", directory / "config.json",
            "--dest-cert-dir", trust, f"oci:{layout}:latest", f"docker://{at}/{repository}:v1",
        )  # fmt: skip

    def compressed(layout: Path) -> Path:
        """The image of *layout* as podman pushes it, which compresses the layers anew."""
        return layout.with_name(f"{layout.name}-compressed")

    def podman(image: images.Image, layout: Path, repository: str) -> str:
        (kept / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (kept / "containers.conf").write_text(f'[engine]\nlock_type = "file"\ntmp_dir = "{kept}/tmp"\n')
        own = (
            "env", f"CONTAINERS_CONF={kept}/containers.conf", programs.program("podman"), "--root", kept / "root",
            "--runroot", kept / "run", "--storage-driver", "vfs",
        )  # fmt: skip
        policy, name = ("--quiet", "--signature-policy", kept / "policy.json"), images.digest_of(image.config)[7:]
        return (
            run(*own, "pull", *policy, f"oci:{layout}:latest")
            or run(*own, "push", *policy, name, f"oci:{compressed(layout)}:latest")
            or run(*own, "push", *policy, "--authfile", directory / "config.json", "--cert-dir", trust, name,
                   f"docker://{at}/{repository}:v1")
            or run(*own, "rmi", "--force", name)
        )  # fmt: skip

    def crane(image: images.Image, layout: Path, repository: str) -> str:
        return run(programs.program("crane"), "push", layout, f"{at}/{repository}:v1")

    def regctl(image: images.Image, layout: Path, repository: str) -> str:
        return run(programs.program("regctl"), "image", "copy", f"ocidir://{layout}:latest", f"{at}/{repository}:v1")

    def oras(image: images.Image, layout: Path, repository: str) -> str:
        return run(programs.program("oras"), "cp", "--no-tty", "--from-oci-layout", f"{layout}:latest",
                   f"{at}/{repository}:v1")  # fmt: skip

    def own(image: images.Image, layout: Path, repository: str) -> str:
        try:
            retry(lambda: images.push(registry, image, repository, "v1"), 60)  # as `seed` does
        except RegistryError as error:
            return error.message
        return ""

    def go(name: str, push: Callable[[images.Image, Path, str], str], number: int) -> None:
        count = 0
        while not ended.is_set():
            image = _image(time.time_ns(), base)
            layout = image.write_layout(directory / f"{name}-{count}")
            repository = f"tests/pushing-{name}-{count % 7}"
            begin, begun = time.time(), time.monotonic()
            error = push(image, layout, repository)
            if compressed(layout).exists():
                image = images.read_layout(compressed(layout))
            result.done.append(Pushed(name, repository, image, begin, time.monotonic() - begun, error))
            count += 1
            ended.wait(every)

    # Its storage, and what else it keeps; otherwise that of this machine. It wants a short name.
    kept = Path(tempfile.mkdtemp(prefix="podman-"))
    ways = {
        "skopeo": skopeo, "podman": podman, "crane": crane, "client": own, "regctl": regctl, "oras": oras
    }  # fmt: skip
    workers = [
        threading.Thread(target=go, args=(name, push, number))
        for number, (name, push) in enumerate(ways.items())
        if name in clients
    ]
    for one in workers:
        one.start()
    try:
        yield result
    finally:
        ended.set()
        for one in workers:
            one.join()
        shutil.rmtree(kept)


def _image(seed: int, base: bytes | None) -> images.Image:
    made = images.image((60_000, 40_000), seed=seed)
    return made if base is None else with_layer(made, base)


def with_layer(image: images.Image, layer: bytes) -> images.Image:
    """*image* with one layer more, the first of it."""
    config = json.loads(image.config)
    config["rootfs"]["diff_ids"].insert(0, images.tar_digest(layer))
    content = json.dumps(config).encode()
    manifest = json.loads(image.manifest)
    manifest["config"] |= {"digest": images.digest_of(content), "size": len(content)}
    manifest["layers"].insert(0, {"mediaType": images.LAYER, "digest": images.digest_of(layer), "size": len(layer)})
    return images.Image(json.dumps(manifest).encode(), content, (layer, *image.layers))
