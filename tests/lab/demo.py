"""A registry on three real hosts, from bare to power cut, in front of your eyes. ``make demo`` runs it.

Ends with a lab that stays up, so that everything can be tried by hand; ``make lab-down`` takes it away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kubeadm_registry import paths
from kubeadm_registry.oci import canary
from tests.lab import machine, programs
from tests.lab.command import LabError
from tests.lab.images import packed
from tests.lab.lab import Lab, started_by
from tests.lab.reading import Object, reading
from tests.lab.registry import SERVERS, Registry
from tests.lab.settings import Place, Settings

IMAGE = "registry.k8s.io/demo/crane:v1"
CRI = "unix:///run/containerd/containerd.sock"
#: Seconds of reading before and after the cut.
CALM, AFTER = 2.0, 6.0


def main() -> int:
    """Run the demo; the status to end with."""
    try:
        if problems := machine.problems():
            raise LabError("this machine cannot have a lab: " + "; ".join(problems))
        demo()
    except LabError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    return 0


def demo() -> None:
    """From nothing to the measured gap."""
    place = Place.default()
    heading("Three nodes and a client: Debian with systemd, sshd and containerd, no internet access")
    if started_by(place) is not None:
        say("an earlier lab is still running and is removed first")
        Lab.open(place).down()
    begin = time.monotonic()
    lab = Lab.up(Settings(), place=place)
    say(f"up after {time.monotonic() - begin:.1f} s: " + ", ".join(f"{h.name} {h.address}" for h in lab.hosts.values()))

    frontend = "zot" if programs.zot() is not None else "distribution"
    registry = Registry(lab, frontend, place.directory / "demo")
    heading(f"A bundle with all programs ({frontend}), as it would be carried to the air-gapped site")
    shown(registry, "bundle", "inspect", registry.bundle)
    heading("The cluster file")
    say(registry.file.read_text().rstrip())

    heading("kubeadm-registry preflight && kubeadm-registry init")
    begin = time.monotonic()
    shown(registry, "preflight", "--bundle", registry.bundle)
    shown(registry, "init", "--bundle", registry.bundle)
    say(f"\nfrom bare nodes to a verified registry in {time.monotonic() - begin:.1f} s")
    heading("kubeadm-registry init, again")
    shown(registry, "init")
    registry.wait_whole()

    heading(f"skopeo pushes an image as {IMAGE}")
    push(registry)
    heading("containerd pulls it on every node by its upstream name, through the virtual IP")
    for name in SERVERS:
        pull(registry, name)

    heading("The node with the virtual IP loses power while a client reads 50 times a second")
    cut(registry)
    heading("kubeadm-registry status")
    shown(registry, "status", check=False)
    what_next(registry)


def push(registry: Registry) -> None:
    """Push a real image with skopeo, which trusts only the cluster CA."""
    with tempfile.TemporaryDirectory() as directory:
        image = packed({"/usr/local/bin/crane": programs.program("crane")})
        layout = image.write_layout(Path(directory) / "image")
        trust = Path(directory) / "trust"
        trust.mkdir()
        (trust / "ca.crt").write_bytes(registry.ca.read_bytes())
        login = Path(directory) / "auth.json"
        credentials = f"{registry.vip}:{paths.REGISTRY_PORT}"
        word = registry.login()
        registry.lab.run(
            "skopeo", "login", "--authfile", str(login), "--cert-dir", str(trust), "--username", word.username,
            "--password-stdin", credentials, stdin=word.password,
        )  # fmt: skip
        begin = time.monotonic()
        registry.lab.run(
            "skopeo", "copy", "--quiet", "--insecure-policy", "--authfile", str(login), "--dest-cert-dir", str(trust),
            f"oci:{layout}:latest", f"docker://{credentials}/{IMAGE}",
        )  # fmt: skip
        say(f"pushed in {time.monotonic() - begin:.1f} s")


def pull(registry: Registry, name: str) -> None:
    """Pull it as a kubelet would: through containerd's CRI."""
    host = registry.servers[name]
    host.put(programs.program("crictl"), "/usr/local/bin/crictl", mode="755")
    begin = time.monotonic()
    host.sh("crictl", "--image-endpoint", CRI, "--runtime-endpoint", CRI, "pull", IMAGE, timeout=60)
    say(f"{name}: crictl pull {IMAGE}: {time.monotonic() - begin:.1f} s")


def cut(registry: Registry) -> None:
    """Cut the holder's power under a reading client, and print what the client noticed."""
    holder = registry.holder()
    what = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
    with reading(registry, what) as seen:
        time.sleep(CALM)
        holder.power_cut()
        say(f"{holder.name}: power cut")
        time.sleep(AFTER)
    now = ", ".join(registry.holders())
    say(f"the virtual IP is on {now}; the client got no response for {seen.gap:.2f} s")
    say(f"({seen})")


def what_next(registry: Registry) -> None:
    """What to try by hand."""
    command = f"{sys.executable} -m tests.lab"
    cli = f"{sys.executable} -m kubeadm_registry"
    off = next((host.name for host in registry.servers.values() if host.state != "on"), SERVERS[0])
    heading("What to try next")
    say(
        f"""\
{command} power-on {off}              the lost node rejoins
{command} net-cut h2 --silent         a dead switch port: the carrier stays
{command} pause h3                    a node that hangs
{command} ssh h1                      a shell on a node
{command} in {cli} status --file {registry.file}
make lab-down                         remove the lab"""
    )


def shown(registry: Registry, *arguments: str | Path, check: bool = True) -> None:
    """Run the command line with its output on this terminal."""
    sys.stdout.flush()
    environment = {**os.environ, "COLUMNS": os.environ.get("COLUMNS", "120")}
    status = subprocess.run(registry.argv(*arguments), cwd=registry.directory, env=environment, check=False).returncode
    if check and status:
        raise LabError(f"kubeadm-registry {arguments[0]} ended with status {status}")


def heading(text: str) -> None:
    """A line that begins a part."""
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
