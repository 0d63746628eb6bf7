"""The helpers of a site's nodes: an sshd on loopback, whose one command answers what the operator asks at rest."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubeadm_registry.access import questions
from kubeadm_registry.access.replacing import Standing
from kubeadm_registry.members import Members
from tests.lab.command import run, wait_until
from tests.operator.apiserver import free_port
from tests.operator.site import ADDRESSES, Site

SSHD = "/usr/sbin/sshd"
_SAMPLE = Path(__file__).parents[1] / "golden/formats/agent-state.json"
#: A node is known by the port: the fourth word of SSH_CONNECTION (ssh(1)).
_COMMAND = """#!/bin/sh
cd -- "${0%/*}/${SSH_CONNECTION##* }" || exit
question=$(cat)
for each in look replacing pulls; do
  case $question in *"\\"verb\\": \\"$each\\""*) exec cat -- "$each" ;; esac
done
exec cat -- unknown
"""


@contextmanager
def helpers(site: Site) -> Iterator[None]:
    """Every node of *site* has one, with nothing to do; cp-1 holds the lease. Their keys go into its Secret."""
    folder = site.folder / "helpers"
    folder.mkdir()
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    command = folder / "command"
    command.write_text(_COMMAND)
    command.chmod(0o755)
    (folder / "authorized").write_text(f'restrict,command="{command}" {(folder / "user.pub").read_text()}')
    hosts = []
    for name, address in ADDRESSES.items():
        port = site.ports[address, 22] = free_port()
        hosts.append(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        (folder / str(port)).mkdir()
        for question, answer in _answers(name).items():
            (folder / str(port) / question).write_bytes(answer)
    (site.secret / "helper-key").write_text((folder / "user").read_text())
    (site.secret / "helper-hosts").write_text("".join(hosts))
    settings = {
        "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PermitRootLogin": "yes",
    }  # fmt: skip
    lines = [*(f"Port {site.ports[address, 22]}" for address in ADDRESSES.values()),
             *(f"{key} {value}" for key, value in settings.items())]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    log = folder / "log"
    with log.open("wb") as said:
        sshd = subprocess.Popen(["setpriv", "--pdeathsig=KILL", "--", SSHD, "-D", "-e", "-f", folder / "sshd_config"],
                                stderr=said)  # fmt: skip
    try:
        wait_until("sshd to listen", lambda: log.read_bytes().count(b"listening") == len(ADDRESSES), seconds=30)
        yield
    finally:
        sshd.kill()
        sshd.wait()


def _answers(name: str) -> dict[str, bytes]:
    """What the helper of the node *name* says to each question."""
    fresh = {"presence": "fresh", "level": 0, "age": 0.1, "round_trip": 0.1}
    state = json.loads(_SAMPLE.read_text()) | {
        "name": name, "address": ADDRESSES[name], "time": time.time(), "storage_left": {"blocks": 0, "tables": 0},
        "peers": {peer: {**fresh, "address": at} for peer, at in ADDRESSES.items() if peer != name},
        "writer": {"mode": "single", "role": "writer" if name == "cp-1" else "standby", "term": 1, "epoch": 1},
    }  # fmt: skip
    standing = Standing(allowed=False, members=Members(1, ADDRESSES), work=None)
    error = {"message": "not known here", "code": "QuestionInvalid", "hint": "this is a test"}
    return {
        "look": questions.answer({"running": [], "agent": state}),
        "replacing": questions.answer(standing.values()),
        "pulls": questions.answer({"since": 0, "last": [], "missed": []}),
        "unknown": questions.answer({"error": error}),
    }
