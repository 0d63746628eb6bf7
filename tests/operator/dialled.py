"""The operator as a process whose connections to nodes lead to loopback: python -P tests/operator/dialled.py PORTS

PORTS is JSON: a list of address, port, and the port on loopback. It starts the operator of whichever release PYTHONPATH
leads to.
"""

from __future__ import annotations

import getpass
import json
import sys
from dataclasses import replace
from functools import partial

from kubeadm_registry.operator import __main__ as program
from kubeadm_registry.operator import way
from kubeadm_registry.transport.ssh_command import ask
from kubeadm_registry.transport.ssh_config import SshTarget


def main(ports: str) -> None:
    """Start it."""
    places = {(address, port): place for address, port, place in json.loads(ports)}

    def dial(address: str, port: int) -> tuple[str, int]:
        return "127.0.0.1", places.get((address, port), 1)

    def dialled(target: SshTarget, content: bytes, seconds: float) -> bytes:
        address, port = dial(target.address, target.port or 22)
        return ask(replace(target, address=address, port=port, user=getpass.getuser()), content, seconds)

    vars(way).update(ask=dialled, read=partial(way.read, dial=dial))
    program.main()


if __name__ == "__main__":
    main(sys.argv[1])
