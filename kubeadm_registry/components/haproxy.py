"""HAProxy: the only entry point of the registry, with TLS, authorization and the route to a healthy frontend."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import partial

from kubeadm_registry import paths, pki
from kubeadm_registry.addresses import endpoint
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.config.values import EVERY_REGISTRY
from kubeadm_registry.engine.changes import Directory, File, Steps, Wait
from kubeadm_registry.engine.render import render
from kubeadm_registry.images.names import OURS
from kubeadm_registry.secrets import LOGINS, basic
from kubeadm_registry.transport.host import Host

NAME = "haproxy"
USER = paths.user(NAME)
ETC = f"{paths.ETC}/haproxy"
CONFIG = f"{ETC}/haproxy.cfg"
STATE_MAP = f"{ETC}/state.map"
AUTH_MAP = f"{ETC}/auth.map"
HOLD = f"{ETC}/hold.lua"
PUSHES = f"{ETC}/pushes.lua"
PUSHES_MAP = f"{ETC}/pushes.map"
"""Until when pushes are closed: seconds since 1970, of this node's clock."""
PUSHES_OPEN = b"closed 0\nfull 0\n"
RUN = f"{paths.RUN}/haproxy"
SERVICE = Service(
    NAME,
    units=paths.HAPROXY_UNITS,
    user=USER,
    program=NAME,
    reloaded_by=(CONFIG, AUTH_MAP, HOLD, STATE_MAP, PUSHES, PUSHES_MAP),
    ports=(Port(paths.REGISTRY_PORT), Port(paths.INTERNAL_PORT)),
    calls=(paths.FRONTEND_PORT,),
)
#: Connections to each of the two processes. An idle one costs some 20 KB.
PUBLIC_MOST, INTERNAL_MOST = 3000, 1000
#: From one address: as many as a hundred nodes behind one router need, not enough to keep out others.
SOURCE_MOST = 400
#: Of the public ones, kept for the servers themselves: the last half for this one, as whose client its agent looks.
SERVERS_RESERVE = 400


def names(cluster: Cluster, host: Host) -> list[str]:
    """Every name by which a client may ask for *host*: its own, the VIP's, loopback."""
    node, vip = cluster.node(host), cluster.spec.vip
    own = [node.name, *node.addresses, *vip.addresses, *([vip.name] if vip.name else [])]
    return [*own, "localhost", "127.0.0.1", "::1"]


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """The node's certificate with its key, signed by the cluster CA; reissued when it no longer fits."""

    cluster: Cluster
    title = "issue the certificate of this node"
    path = paths.NODE_PEM

    def diff(self, host: Host) -> str | None:
        """Why it is issued, or None."""
        state = host.state(paths.NODE_PEM)
        if state is None:
            return f"{paths.NODE_PEM}: new certificate for {', '.join(names(self.cluster, host))}"
        secrets = self.cluster.secrets
        flaw = pki.renewal_reason(
            secrets.ca_certificate,
            state.content.decode(errors="replace"),
            names(self.cluster, host),
            replaced=secrets.renewal.get(host.name, ""),
        )
        if flaw is not None:
            return f"{paths.NODE_PEM}: the certificate {flaw}"
        if (state.mode, state.owner) != (0o640, f"root:{USER}"):
            return f"{paths.NODE_PEM}: owner {state.owner} -> root:{USER}, mode {state.mode:o} -> 640"
        return None

    def apply(self, host: Host) -> None:
        """Make a key, sign it, write both as one file."""
        secrets = self.cluster.secrets
        pair = pki.issue(pki.Pair(secrets.ca_certificate, secrets.ca_key), host.name, names(self.cluster, host))
        host.write(paths.NODE_PEM, (pair.certificate + pair.key).encode(), mode=0o640, owner=f"root:{USER}")


def login_digest(user: str, password: str) -> str:
    """What stands in the map for a login: SHA-256, hex, of the credentials as RFC 7617 has them."""
    return hashlib.sha256(basic(user, password).encode()).hexdigest()


def identity(cluster: Cluster, host: Host) -> Steps:
    """The proxy's folder, and the server's certificate."""
    yield Directory(ETC, mode=0o750, owner=f"root:{USER}")
    yield File(paths.CA, cluster.secrets.trust.encode())
    yield NodeCertificate(cluster)


class PushesMap(File):
    """Until when pushes are closed. What is in the file stays: pushes may be closed by a run that died."""

    def diff(self, host: Host) -> str | None:
        """That there is no such file, or what differs in mode and owner."""
        there = host.read(self.path)
        kept = there is not None and re.fullmatch(rb"closed \d+\nfull \d+\n", there)
        return File(self.path, kept[0] if kept else self.content, self.mode, self.owner).diff(host)


def install(cluster: Cluster, host: Host, *, single_writer: bool) -> Steps:
    """Install the proxy's configuration and start both processes. *single_writer*: writes go to one server."""
    secrets, spec, node = cluster.secrets, cluster.spec, cluster.node(host)
    auth_map = File(
        AUTH_MAP,
        "".join(f"{login_digest(role, one)} {role}\n" for role in LOGINS for one in secrets.passwords(role)).encode(),
        owner=f"root:{USER}",
        mode=0o640,
        secret=True,
    )
    files = [
        auth_map,
        File(STATE_MAP, b"epoch 0\n"),
        File(PUSHES, render("haproxy/pushes.lua", map=PUSHES_MAP)),
        PushesMap(PUSHES_MAP, PUSHES_OPEN),
    ]
    if single_writer:
        files.append(File(HOLD, render("haproxy/hold.lua")))
    program = cluster.program(NAME).executable
    config = File(
        CONFIG,
        render(
            "haproxy/haproxy.cfg.j2",
            node=node,
            peers=cluster.peers(host),
            listen=(*node.addresses, paths.LOOPBACK),
            vip=spec.vip.addresses,
            port=paths.REGISTRY_PORT,
            internal_port=paths.INTERNAL_PORT,
            public_most=PUBLIC_MOST,
            internal_most=INTERNAL_MOST,
            source_most=SOURCE_MOST,
            servers_reserve=SERVERS_RESERVE,
            servers_addresses=[*(address for one in spec.nodes for address in one.addresses), *spec.vip.addresses],
            loopback_network=paths.LOOPBACK_NETWORK,
            retention=paths.RETENTION_NAME,
            executor_source=paths.EXECUTOR_SOURCE,
            frontend=endpoint(paths.LOOPBACK, paths.FRONTEND_PORT),
            read_source=paths.READ_SOURCE,
            pem=paths.NODE_PEM,
            ca=paths.CA,
            etc=ETC,
            run=RUN,
            node_unit=pki.NODE_UNIT,
            single_writer=single_writer,
            records=OURS,
            anonymous_pull=spec.proxy.anonymous_pull,
            any_upstream=paths.ANY_UPSTREAM if EVERY_REGISTRY in spec.mirrors else "",
        ),
        validate=(program, "-c", "-q", "-f", "{path}"),
    )
    yield from files
    yield config
    yield from serve(
        SERVICE,
        (config, *files),
        user=USER,
        program=program,
        config=CONFIG,
        run=RUN,
    )
    yield Wait("the proxy responds", partial(_listens, cluster), timeout=20)


def _listens(cluster: Cluster, host: Host) -> str | None:
    # Asked of the kernel, not over HTTP: a host need not have a client.
    wanted = endpoint(cluster.node(host).address, paths.REGISTRY_PORT)
    listening = host.query("ss", "-Hltn", "sport", "=", f":{paths.REGISTRY_PORT}").text
    return None if wanted in listening else f"nothing listens on {wanted}"
