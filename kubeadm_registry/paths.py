"""Where everything of ours lies on a host, and which ports it uses. Nothing of ours is anywhere else.

Free for kubeadm: 6443, 10250, 10257, 10259, 2379 and 2380, /etc/kubernetes, /var/lib/etcd and /var/lib/kubelet.
"""

from __future__ import annotations

ETC = "/etc/kubeadm-registry"
OPT = "/opt/kubeadm-registry"
RUN = "/run/kubeadm-registry"
PROGRAMS = f"{OPT}/programs"
LIBEXEC = f"{OPT}/libexec"
UNITS = "/etc/systemd/system"

CA = f"{ETC}/ca.crt"
NODE_PEM = f"{ETC}/haproxy/node.pem"
"""The server's certificate and key in one file, as HAProxy wants them."""
FIT = f"{RUN}/agent/fit"
"""1 while this node serves reads well; anything else, or no file, makes keepalived give up the VIP."""
ALONE = f"{RUN}/agent/alone"
BEHIND = f"{RUN}/agent/behind"
"""1 while this node is cut off from the majority, or back for a moment only: keepalived has a lower priority then."""
WRITER_MARK = f"{RUN}/agent/writer"
"""There while a process of the frontend may be the writer; the agent's own default is the same."""
MOVE = f"{RUN}/agent/move"
"""Where the agent is asked for a planned move of the VIP; its own default is the same."""
AGENT_STATE = f"{RUN}/agent/state.json"
"""What the agent sees, written every second."""

LOCK = "/run/kubeadm-registry.lock"
"""Held by a run on the node; who holds it is beside it in ``.who``. Not below RUN, which goes with the agent."""

HELPER_SOCKET = "/run/kubeadm-registry-helper.sock"
"""Where the helper of the operator is asked; not below RUN, which goes with the agent."""

RETENTION_STATE = "/var/lib/kubeadm-registry-retention"
"""What the retention executor keeps between runs, and the results of its runs."""

PULLS_NAME = "pulls"
PULLS_STATE = "/var/lib/kubeadm-registry-pulls"
"""When images were pulled through this node."""

REMOVED = (RETENTION_STATE, PULLS_STATE, ETC, OPT, RUN)
"""The directories that reset removes with all that is in them."""

GUARD = f"{ETC}/guard.nft"
"""The nft rules that guard the frontend and the storage on loopback. Their table is called PREFIX."""

PREFIX = "kubeadm-registry"
"""Begins the name of every unit, user and nft table of ours; but see SLICE."""
HAPROXY_UNITS = tuple(f"{PREFIX}-haproxy@{number}.service" for number in (1, 2))
"""HAProxy is the one killed process that clients notice, so two of them share the port."""
HAPROXY_SOCKETS = tuple(f"{RUN}/haproxy/{number}.sock" for number in (1, 2))
"""The runtime socket of each of them."""
RETENTION_NAME = "retention"
"""Who carries out retention: a user of the system, and the registry's login for it."""
RETENTION_UNIT = f"{PREFIX}-{RETENTION_NAME}@.service"
"""The template of the units that carry out retention where the lease is; the agent's own default is the same."""
FENCE_TABLE = f"{PREFIX}-fence"
"""The nft table of the kernel's timer."""
ENDING_TABLE = f"{PREFIX}-ending"
"""The nft table of connections that end after their node has died; the agent has the same name."""
ENDING_MARK = 0x2083
"""Of packets of those connections; that of the agent is the same. kube-proxy, Calico and Cilium use other bits."""
TABLES = (PREFIX, FENCE_TABLE, ENDING_TABLE)
"""All nft tables that stay, of the family inet."""
SLICE = "kubeadm_registry.slice"
"""Without a dash: ``kubeadm-registry.slice`` would lie in a ``kubeadm.slice``, so its weights would be weighed against
nobody's, and that slice would outlive us (systemd.slice(5))."""

REGISTRY_PORT = 5000
"""HAProxy, TLS: the registry as clients see it."""
ANY_UPSTREAM = "_upstream"
"""Below ``/v2/``: images of whatever registry the query names. No repository begins with an underscore."""
INTERNAL_PORT = 5443
"""HAProxy, mutual TLS: reads and writes that another server passes on."""
HEARTBEAT_PORT = 5444
"""The agents' heartbeats, UDP."""
AGENT_PORT = 5445
"""The agent's metrics and state, mutual TLS."""
FRONTEND_PORT = 5001
"""zot or Distribution, on loopback only."""
S3_PORT = 3900
RPC_PORT = 3901
ADMIN_PORT = 3903

FENCE_PORT = 3904
"""The agent's words to the kernel's timer, UDP on the storage's loopback address; they never leave the host."""

LOOPBACK = "127.0.0.1"
LOOPBACK_NETWORK = "127.0.0.0/8"
S3_ADDRESS = "127.0.0.39"
"""Garage's S3 has a loopback address of its own, so that its route alone can acknowledge at once (quickack)."""
READ_SOURCE = "127.0.0.9"
"""HAProxy's read connections to the frontend come from here: the agent may reset these and never a write."""

EXECUTOR_SOURCE = "127.0.0.10"
"""HAProxy's connections to the frontend for what carries out retention come from here: they stand under the lease."""

RPC_TABLE = 3901
"""Routing table and rule priority for Garage's peers: the same routes, with quickack."""

HANDOVER_TABLE = 3902
"""Routing table and rule priority for connections that stay with a server which has given the VIP away."""


def unit(name: str) -> str:
    """``kubeadm-registry-garage.service``."""
    return f"{PREFIX}-{name}.service"


def user(name: str) -> str:
    """The system user of the service *name*."""
    return f"{PREFIX}-{name}"
