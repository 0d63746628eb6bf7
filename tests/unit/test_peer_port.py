"""The port by which servers reach each other, as a real HAProxy guards it with the rendered configuration."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeadm_registry import config, paths, pki
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.components import haproxy
from kubeadm_registry.engine.render import render
from tests.unit import real_haproxy
from tests.unit.fake_cluster import authority
from tests.unit.test_served import free_port

NODES = config.parse(config.SMALLEST, "x").spec.nodes
LOCAL, PEER = "127.0.0.1", "127.0.0.2"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The internal port of cp-1, whose peers are cp-2 and cp-3."""
    program = real_haproxy.program()
    folder = tmp_path_factory.mktemp("haproxy")
    pair = pki.issue(authority(), "cp-1", (LOCAL,))
    (folder / "node.pem").write_text(pair.certificate + pair.key)
    (folder / "ca.crt").write_text(authority().certificate)
    for name in ("auth.map", "state.map"):
        (folder / name).write_text("")
    (folder / "pushes.map").write_bytes(haproxy.PUSHES_OPEN)
    (folder / "pushes.lua").write_bytes(render("haproxy/pushes.lua", map=folder / "pushes.map"))
    internal = free_port()
    text = render(
        "haproxy/haproxy.cfg.j2",
        node=NODES[0].model_copy(update={"address": LOCAL}),
        peers=[one.model_copy(update={"address": PEER}) for one in NODES[1:]],
        listen=(LOCAL,),
        vip=(),
        port=free_port(),
        internal_port=internal,
        public_most=haproxy.PUBLIC_MOST,
        internal_most=haproxy.INTERNAL_MOST,
        source_most=haproxy.SOURCE_MOST,
        servers_reserve=haproxy.SERVERS_RESERVE,
        servers_addresses=[LOCAL],
        loopback_network=paths.LOOPBACK_NETWORK,
        retention=paths.RETENTION_NAME,
        executor_source=LOCAL,
        frontend=endpoint(LOCAL, free_port()),
        read_source=LOCAL,
        pem=folder / "node.pem",
        ca=folder / "ca.crt",
        etc=folder,
        run=folder,
        node_unit=pki.NODE_UNIT,
        single_writer=False,
        anonymous_pull=True,
        any_upstream="",
        records="kubeadm-registry/",
    )
    (folder / "haproxy.cfg").write_bytes(text)
    argv = [program, "-db", "-f", str(folder / "haproxy.cfg")]
    process = subprocess.Popen(argv, env={"INSTANCE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while socket.socket().connect_ex((LOCAL, internal)) != 0:
            assert time.monotonic() < end and process.poll() is None, "HAProxy does not start"
            time.sleep(0.05)
        yield internal
    finally:
        process.kill()
        process.wait()


def answered(port: int, folder: Path, pair: pki.Pair) -> bool:
    """Whether a write by somebody with this certificate is answered at all."""
    (folder / "client.pem").write_text(pair.certificate + pair.key)
    context = ssl.create_default_context(cadata=authority().certificate)
    context.load_cert_chain(folder / "client.pem")
    with socket.create_connection((LOCAL, port), 10, (PEER, 0)) as wire:
        try:
            with context.wrap_socket(wire, server_hostname=LOCAL) as tls:
                tls.sendall(b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                return tls.recv(9) == b"HTTP/1.1 "
        except (ssl.SSLError, ConnectionError):
            return False


@pytest.mark.parametrize(
    ("name", "unit", "may"),
    [
        ("cp-1", pki.NODE_UNIT, True),
        ("cp-3", pki.NODE_UNIT, True),
        ("cp-4", pki.NODE_UNIT, False),  # it was a member once
        ("cp-33", pki.NODE_UNIT, False),
        ("cp-2", "registry-admin", False),
    ],
)
def test_only_members_come_in(port: int, tmp_path: Path, name: str, unit: str, may: bool) -> None:
    assert answered(port, tmp_path, pki.issue(authority(), name, (name,), unit=unit)) is may


def test_a_certificate_of_another_authority_does_not(port: int, tmp_path: Path) -> None:
    assert not answered(port, tmp_path, pki.issue(pki.make_ca("registry"), "cp-2", ("cp-2",)))
