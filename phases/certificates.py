"""New certificates for the nodes, and another CA: what `certs renew` does beside storing the secrets.

The secrets say what is wanted, so `init` completes what a killed run has left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from kubeadm_registry import certificates, paths, rotation
from kubeadm_registry.cluster import Cluster, leader
from kubeadm_registry.components.certificates import leaf, presented
from kubeadm_registry.components.served import Served, Trusted
from kubeadm_registry.engine.changes import File, Steps
from kubeadm_registry.engine.phase import Check, Phase, Workflow
from kubeadm_registry.engine.report import Action, Reporter
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.phases.containerd import CONTAINERD
from kubeadm_registry.phases.exchange import Others, Stages, exchange
from kubeadm_registry.phases.identity import STORE, lasting
from kubeadm_registry.pki import fingerprint
from kubeadm_registry.secrets import Secrets
from kubeadm_registry.transport.host import Host, side_by_side


def _agent(_: Cluster, host: Host) -> Steps:
    yield presented()


def _trust(cluster: Cluster, _: Host) -> Steps:
    yield File(paths.CA, cluster.secrets.trust.encode())
    yield Trusted()


def reloadable(_: Cluster, host: Host) -> Iterator[str]:
    """It can be seen which CAs the proxies trust, and so when it is safe to go on."""
    shown = certificates.ask(host, "show")
    for path, has in shown["trusted"].items():
        if has is None and shown["proxies"][path] is not None:
            yield "its HAProxy is older than 2.5 and does not report which CAs it trusts; run init with a newer bundle"


TRUST = Phase(
    "trust",
    "Make the nodes trust the CAs",
    _trust,
    checks=(Check("ProxyTrust", reloadable, mandatory=True),),
    one_at_a_time=True,
)
LEAVES = Phase(
    "leaves",
    "Issue each node's certificate and load it into HAProxy",
    leaf,
    checks=(Check("Authority", lasting, on=leader),),
    one_at_a_time=True,
)
AGENTS = Phase("agents", "Wait until the agents present the certificates", _agent)
RENEW: Workflow = (STORE, LEAVES, AGENTS)
STAGES: Stages = {
    "trust": (STORE, TRUST, CONTAINERD),
    "issue": (STORE, TRUST, CONTAINERD, LEAVES, AGENTS),
    "remove": (STORE, TRUST, CONTAINERD),
    "": (STORE,),
}
"""What brings the nodes to each stage of a new CA; see ``rotation``."""


def requested(cluster: Cluster, names: Collection[str]) -> Secrets:
    """The secrets that ask for new certificates on the nodes *names*. Raises Error (NotInstalled) if one has none."""

    asked = cluster.secrets.renewal

    def current(host: Host) -> str:
        content = host.read(paths.NODE_PEM)
        if content is None:
            raise Error(f"there is no {paths.NODE_PEM}", host=host.name, hint="run init first", code="NotInstalled")
        if host.name in asked and Served().diff(host) is not None:
            return asked[host.name]  # the new one is on disk alone
        try:
            return fingerprint(content.decode())
        except ValueError:
            return ""  # damaged: it is issued again in any case

    hosts = [host for host in cluster.hosts if host.name in {*names, *cluster.secrets.renewal}]
    found = dict(zip([host.name for host in hosts], side_by_side(current, hosts), strict=True))
    return rotation.request(cluster.secrets, {name: one for name, one in found.items() if one}, names)


def renewal(names: Collection[str]) -> Workflow:
    """``RENEW`` for the nodes *names*; all nodes store the request."""

    def on(cluster: Cluster) -> Sequence[Host]:
        return [host for host in cluster.hosts if host.name in names]

    return (STORE, replace(LEAVES, on=on), replace(AGENTS, on=on))


def renew(cluster: Cluster, reporter: Reporter, names: Collection[str], *, dry_run: bool = False) -> list[Action]:
    """New certificates for the nodes *names*; return what was changed. A run that died is completed, not repeated.

    Raises what ``run`` does, and Error (NotInstalled).
    """
    wanted = requested(cluster, names)
    if wanted != cluster.secrets:
        cluster = cluster.with_secrets(wanted)
    return run(renewal(names), cluster, reporter, dry_run=dry_run)


def replace_authority(
    cluster: Cluster, reporter: Reporter, others: Others, *, trust_only: bool = False, dry_run: bool = False
) -> list[Action]:
    """Replace the CA; see ``exchange``. *trust_only*: stop while both CAs are trusted."""
    return exchange("ca", STAGES, cluster, reporter, others, keep=trust_only, dry_run=dry_run)
