"""The node agent: probes the services, and steers HAProxy, keepalived and the writer with the other nodes' agents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kubeadm_registry import paths
from kubeadm_registry.addresses import family
from kubeadm_registry.agent.document import MOVES_FILE, SPACE_FILE
from kubeadm_registry.agent.formats import Found
from kubeadm_registry.agent.keys import LEFT
from kubeadm_registry.agent.promised import RECORD, decode
from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components import haproxy, zipapp
from kubeadm_registry.components.units import Port, Service, serve
from kubeadm_registry.engine.changes import Directory, File, Steps, Wait, secret_of, unit_path
from kubeadm_registry.engine.render import render
from kubeadm_registry.errors import Error
from kubeadm_registry.oci import canary
from kubeadm_registry.transport.host import Host

if TYPE_CHECKING:
    from kubeadm_registry.components.services import Backend, Frontend

NAME = "agent"
UNIT = paths.unit(NAME)
USER = paths.user(NAME)
ETC = f"{paths.ETC}/agent"
CONFIG = f"{ETC}/agent.json"
ARCHIVE = f"{paths.OPT}/agent/agent.pyz"
END_WRITER = f"{paths.LIBEXEC}/end-writer"
HEARTBEAT_KEY = f"{ETC}/heartbeat.key"
ADMIN_TOKEN = f"{ETC}/admin_token"
SERVICE = Service(
    NAME,
    units=(UNIT,),
    user=USER,
    # It speaks to the proxy's runtime socket and shows the same certificate.
    groups=(haproxy.USER,),
    reloaded_by=(ARCHIVE, HEARTBEAT_KEY, ADMIN_TOKEN, CONFIG, END_WRITER),
    ports=(Port(paths.HEARTBEAT_PORT, "udp"), Port(paths.AGENT_PORT)),
    calls=(paths.FRONTEND_PORT, paths.ADMIN_PORT),
)
#: What it is made of: when one of these changes, it begins anew, and gives no vote at first.
MADE_OF = frozenset({ARCHIVE, CONFIG, unit_path(UNIT)})
#: What the agent is written for.
PYTHON = (3, 9)
#: Where the host's Python is. One that is first in root's PATH may be below a home, where no service finds it.
_HOST = "/usr/bin/python3"
#: Whether the Python ``$2`` is of version ``$1`` (as a tuple's items) or newer. Debian's python3-minimal is in the same
#: place, and lacks most modules.
_PYTHON = '[ -x "$2" ] && "$2" -I -S -c "import ctypes, json, ssl, sys; print(sys.version_info >= ($1))"'


def python(cluster: Cluster, host: Host) -> str:
    """The Python that runs the agent: the host's if it is new enough, else that of the bundle. Raises Error."""
    if host.query("sh", "-c", _PYTHON, "python", f"{PYTHON[0]}, {PYTHON[1]}", _HOST).text == "True":
        return _HOST
    if "python" not in cluster.programs:
        raise Error(
            "neither this host nor the bundle has Python 3.9 or newer", host=host.name, code="PythonMissing",
            hint="create a bundle with Python (`kubeadm-registry bundle create --with ...,python`)",
        )  # fmt: skip
    return cluster.program("python").executable


def data(cluster: Cluster) -> str:
    """The directory of what the agent has promised and must not forget; by its name nobody else's."""
    return f"{cluster.spec.data_directory}/{USER}"


def hardstate(cluster: Cluster) -> str:
    """The agent's file in there."""
    return f"{data(cluster)}/hardstate"


def promises(cluster: Cluster, host: Host) -> list[Found]:
    """What that file says on *host*, in no order. Raises agent.formats.Newer."""
    content = host.read(hardstate(cluster)) or b""
    records = [content[at : at + RECORD] for at in range(0, len(content), RECORD)]
    return [one for record in records if (one := decode(record)) is not None]


def notes(cluster: Cluster) -> tuple[str, ...]:
    """What the agent keeps in there for people."""
    return tuple(f"{data(cluster)}/{name}" for name in (MOVES_FILE, SPACE_FILE))


def settings(cluster: Cluster, host: Host, frontend: Frontend, storage: Backend) -> dict[str, object]:
    """The agent's configuration; ``docs/agent.md`` has the reference."""
    node = cluster.node(host)
    peers = [
        {"name": peer.name, "address": peer.address, **storage.agent_peer(cluster, peer.name)}
        for peer in cluster.peers(host)
    ]
    members = cluster.members
    former = sorted((name, at) for name, at in members.left if family(at) == family(node.address))
    return {
        "name": node.name,
        "address": node.address,
        "peers": peers,
        "generation": members.generation,
        **({"members_before": list(members.before)} if members.before else {}),
        **({"former": [{"name": name, "address": at} for name, at in former]} if former else {}),
        "vips": cluster.spec.vip.addresses,
        "frontend": {"type": frontend.SERVICE.name, "unit": frontend.SERVICE.unit, **frontend.agent_frontend()},
        "writer": "single" if frontend.SINGLE_WRITER else "any",
        "fence": {"address": paths.S3_ADDRESS, "port": paths.FENCE_PORT},
        "executor": {"unit": paths.RETENTION_UNIT, "writes_from": paths.EXECUTOR_SOURCE},
        "storage": storage.agent_storage(),
        "guard": {"tables": list(paths.TABLES), "file": paths.GUARD},
        "canary": {
            "repository": canary.REPOSITORY,
            "manifest": canary.MANIFEST.digest,
            "blob": canary.LAYER.digest,
        },
        "heartbeat_key_file": HEARTBEAT_KEY,
        **({"garage_admin_token_file": ADMIN_TOKEN} if storage.agent_token(cluster) else {}),
        "tls": {"cert": paths.NODE_PEM, "key": paths.NODE_PEM, "ca": paths.CA},
        "proxy": {"sockets": paths.HAPROXY_SOCKETS, "epoch_map": haproxy.STATE_MAP, "pushes_map": haproxy.PUSHES_MAP},
        "paths": {"hardstate": hardstate(cluster)},
    }


def install(cluster: Cluster, host: Host, frontend: Frontend, storage: Backend) -> Steps:
    """Install the agent with its configuration and start it."""
    # The first makes heartbeats, and each is believed that one of them has made. An agent that does not know the mark
    # of those that only nodes which have left may have takes each for a key that nobody has.
    keys = [*cluster.secrets.accepted("heartbeat_key")]
    keys += [f"{LEFT.decode()}{one}" for one in cluster.secrets.left_heartbeat_keys if cluster.members.left]
    key = secret_of(USER, HEARTBEAT_KEY, "\n".join(keys).encode())
    archive = File(ARCHIVE, zipapp.build())
    interpreter = python(cluster, host)
    config = File(
        CONFIG,
        (json.dumps(settings(cluster, host, frontend, storage), indent=1) + "\n").encode(),
        validate=(interpreter, "-I", ARCHIVE, "--check", "--config", "{path}"),
    )
    yield Directory(ETC, mode=0o750, owner=f"root:{USER}")
    yield Directory(f"{paths.OPT}/agent")
    yield Directory(data(cluster), mode=0o700, owner=f"{USER}:{USER}", recursive=True)
    token = storage.agent_token(cluster)
    tokens = [secret_of(USER, ADMIN_TOKEN, token.encode())] if token else []
    files = [archive, key, *tokens, config]
    text = render(
        "agent/end-writer.sh.j2",
        mark=paths.WRITER_MARK,
        slice=paths.SLICE,
        frontend=frontend.SERVICE.unit if frontend.SINGLE_WRITER else "",
        executor=paths.RETENTION_UNIT.replace("@.", "@*."),
    )
    files.append(File(END_WRITER, text, mode=0o755))
    yield from files
    yield from serve(
        SERVICE,
        files,
        user=USER,
        python=interpreter,
        archive=ARCHIVE,
        config=CONFIG,
        data=data(cluster),
        end_writer=END_WRITER,
    )
    yield Wait("the agent reports its state", _tells, timeout=20)


def _tells(host: Host) -> str | None:
    return None if host.query("test", "-s", paths.AGENT_STATE).ok else f"{paths.AGENT_STATE} does not exist"
