"""From a cluster file to connected hosts: which of them is this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kubeadm_registry.access.session import is_here

IN_A_NETWORK = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--net")

#: A machine with these addresses and no other, on which a socket can be bound to any.
SITE = """
set -e
echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind
echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind
ip link set lo up
ip link add one type veth peer name two
ip address add 10.0.0.5/24 dev one
ip address add 10.0.0.11/24 dev one
ip address add fd00::11/64 dev one nodad
ip link set one up
ip link set two up
ip route add default dev one
exec "$@"
"""

LOOK = """
import socket, sys
from kubeadm_registry.access.session import is_here
for address in sys.argv[1:]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
    print(address, is_here(address))
"""


COME_FROM = """
from kubeadm_registry import config
from kubeadm_registry.access.session import Prompts, target
from kubeadm_registry.config.client_list import ClientNode
for start in "10.0.0.1", "fd00::1", "10.9.0.1":
    text = config.SMALLEST.replace("10.0.0.1", start)
    found = config.parse(text, "cluster.yaml")
    client = ClientNode("w-1", found.spec.nodes[1].address)
    print([target(found, node, Prompts()).source for node in (found.spec.nodes[1], client)])
"""


def in_a_network(*command: str) -> str:
    """What *command* prints as root of a network namespace."""
    may = subprocess.run([*IN_A_NETWORK, "true"], capture_output=True, check=False).returncode == 0
    if not may and not os.environ.get("CI"):
        pytest.skip("may not make a network namespace")
    done = subprocess.run([*IN_A_NETWORK, *command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    return done.stdout


def in_a_site(*arguments: str) -> str:
    """What Python prints with these *arguments* on such a machine."""
    return in_a_network("sh", "-c", SITE, "site", sys.executable, "-c", *arguments)


def test_where_any_address_can_be_bound_only_its_own_are_this_machine() -> None:
    """So it is beside keepalived; status would answer for all servers from here, and init make all of them here."""
    own, others = ["10.0.0.11", "fd00::11", "127.0.0.1", "::1"], ["10.0.0.12", "192.0.2.1", "fd00::12", "0.0.0.0"]
    shown = in_a_site(LOOK, *own, *others).splitlines()
    assert shown == [f"{one} True" for one in own] + [f"{one} False" for one in others]


def test_a_node_comes_to_others_from_the_address_by_which_they_know_it() -> None:
    """The key by which nodes replace one another is good from these alone, and the kernel takes the first one."""
    assert in_a_site(COME_FROM) == "['10.0.0.11', None]\n['fd00::11', None]\n[None, None]\n"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "localhost", "198.51.100.1", ""])
def test_what_is_no_address_of_this_machine(address: str) -> None:
    assert not is_here(address)
