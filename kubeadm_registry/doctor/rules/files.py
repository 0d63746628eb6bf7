"""What is on a node's disk: programs, configuration, secrets, certificates, and what an interrupted run left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from kubeadm_registry import paths, pki, secrets
from kubeadm_registry.components import haproxy
from kubeadm_registry.components.haproxy import NodeCertificate
from kubeadm_registry.components.programs import Recorded
from kubeadm_registry.components.services import every_service
from kubeadm_registry.components.units import Service
from kubeadm_registry.doctor.facts import Facts, Unit, registry_units
from kubeadm_registry.doctor.finding import EVERYTHING, Command, Finding, Kind, here, limited
from kubeadm_registry.doctor.rules.units import is_down
from kubeadm_registry.doctor.snapshot import NodeSnapshot, Snapshot
from kubeadm_registry.engine.changes import Directory, File
from kubeadm_registry.engine.look import Difference
from kubeadm_registry.engine.users import User
from kubeadm_registry.phases.immutable import most_lost
from kubeadm_registry.phases.programs import Starts
from kubeadm_registry.status import CERTIFICATE_WARNING_DAYS

NOT_INSTALLED = Kind("NotInstalled", "error", "The registry is not installed yet.")
NODE_BARE = Kind(
    "NodeNotInstalled", "error",
    "The node was reinstalled or its disk replaced; the others serve without it, and none of them may fail.",
)  # fmt: skip
#: The same where too few others are left.
MOST_BARE = Kind(
    NODE_BARE.code, "error",
    "Half of the nodes or more have nothing: the others alone cannot serve, and `recover` says which images are lost.",
)  # fmt: skip
CONFIGURATION_GONE = Kind(
    "ConfigurationRemoved", "error", "Running services continue until restarted; after that the node does not serve."
)
INCOMPLETE = Kind("InitIncomplete", "error", "init was interrupted, or failed; it resumes where it stopped.")
PROGRAMS_GONE = Kind("ProgramsMissing", "error", "Running services continue until restarted, then fail to start.")
CONFIG_DAMAGED = Kind("ConfigDamaged", "error", "The service does not start with this file.")
CONFIG_CHANGED = Kind(
    "ConfigChanged", "warning",
    "Files were edited, or the cluster file or this program changed since the last init; init would change them.",
)  # fmt: skip
UNIT_CHANGED = Kind("UnitChanged", "warning", "A unit file was edited, or this program is newer; init rewrites it.")
MIRRORS_CHANGED = Kind(
    "MirrorsChanged", "error", "containerd on this node does not pull through the registry, or not for all mirrors."
)
SECRETS_MISSING = Kind(
    "SecretsMissing", "error",
    "Services keep running, but a run that reaches only this node would take it for a new one.",
)  # fmt: skip
SECRETS_EXPOSED = Kind(
    "SecretsExposed", "error", "Users other than root can read or replace keys or a password of the registry."
)
SECRETS_UNUSABLE = Kind("SecretsUnusable", "error", "No run can change anything, nor issue a certificate.")
CERTIFICATE_WRONG = Kind("CertificateWrong", "error", "Clients and the other nodes refuse this node.")
CERTIFICATE_EXPIRED = Kind("CertificateExpired", "error", "Clients and the other nodes refuse this node.")
CERTIFICATE_EXPIRES = Kind("CertificateExpires", "warning", "When it has expired, clients refuse this node.")
CERTIFICATE_NOT_LOADED = Kind(
    "CertificateNotLoaded", "warning", "A proxy presents an older certificate, which expires earlier."
)
CA_EXPIRED = Kind("CAExpired", "error", "Clients refuse every node.")
CA_EXPIRES = Kind("CAExpires", "warning", "When it has expired, clients refuse every node, at the same moment.")
RUN_HANGS = Kind(
    "RunHangs", "warning",
    "It holds the lock, so no other run can work on the node. One that copies images to a node, or frees space, may "
    "need that long.",
)  # fmt: skip
RUN_INTERRUPTED = Kind(
    "RunInterrupted", "warning", "A run ended in the middle of a write. Nothing reads these files; a run removes them."
)

#: Of hosts.toml files with a login: nothing but their modes.
_MODES = re.compile(r"(?:\S+: mode [0-7]+ -> [0-7]+\n?)+")
#: Where a program is missing, the nodes have none to give.
WITH_BUNDLE = here("init --bundle kubeadm-registry-bundle.tar")
RECOVER = here("recover --bundle kubeadm-registry-bundle.tar")
#: A run takes a minute, collecting space some minutes; both may take hours where there are many images.
HANGS = timedelta(minutes=30)


def installed(snapshot: Snapshot) -> Iterator[Finding]:
    """The registry is installed, on each node."""
    if not snapshot.made:
        if any(True for _ in snapshot.answering):
            yield Finding(
                NOT_INSTALLED, "", "the registry is not installed on any node",
                [f"{node.name}: ls -d {paths.ETC}: no such file or directory" for node, _ in snapshot.answering],
                (here("preflight"), here("init")), explains=frozenset({EVERYTHING}),
            )  # fmt: skip
        return
    kind, remedy = (MOST_BARE, RECOVER) if _most_are_bare(snapshot) else (NODE_BARE, WITH_BUNDLE)
    for node, facts in snapshot.answering:
        shown = [f"ls -d {path}: no such file or directory" for path in (paths.ETC, paths.PROGRAMS)
                 if path not in facts.tree]  # fmt: skip
        if not node.installed:
            yield Finding(kind, node.name, "the registry is not installed on this node", shown,
                          (remedy,), explains=frozenset({EVERYTHING}))  # fmt: skip
        elif missing := _units_missing(snapshot, facts):
            yield Finding(
                INCOMPLETE, node.name, f"init has not installed {', '.join(missing)} yet",
                [*shown, *(f"systemctl show {unit}: LoadState=not-found" for unit in missing)], (here("init"),),
                explains=frozenset({EVERYTHING}),
            )  # fmt: skip
        elif paths.ETC not in facts.tree:
            yield Finding(
                CONFIGURATION_GONE, node.name, f"{paths.ETC} is gone", shown, (here("init"),),
                explains=_every_unit() | {one.code for one in (SECRETS_MISSING, CONFIG_CHANGED, CONFIG_DAMAGED)}
                | {CERTIFICATE_WRONG.code, MIRRORS_CHANGED.code, "DataMissing", "ServiceStale", "Containerd"},
            )  # fmt: skip


def _most_are_bare(snapshot: Snapshot) -> bool:
    """Whether half of the nodes or more lost all that they had, which `init` would fill from the rest without a word of
    what that lacks. What a reset has left on a node is there again after `init`."""
    bare = [node for node, _ in snapshot.answering if not (node.installed or node.stores)]
    left = [node for node in snapshot.nodes if node.installed and node.stores]
    return most_lost(len(bare), len(left), len(snapshot.nodes))


def _units_missing(snapshot: Snapshot, facts: Facts) -> list[str]:
    """The units that init has not written yet; none where only one is missing, which was removed."""
    missing = [one for one in registry_units(snapshot.config) if (unit := facts.units.get(one)) and not unit.there]
    return missing if len(missing) > 1 else []


def runnable(snapshot: Snapshot) -> Iterator[Finding]:
    """The programs are there, and start."""
    for node, facts in snapshot.answering:
        found: dict[str, Difference] = {}
        for difference in node.differences:
            if isinstance(difference.change, Starts) and not facts.running:
                found[difference.change.program.name] = difference
        if not found:
            continue
        services = [one for one in every_service() if one.program in found]
        shown = [one.text if one.error else f"{one.text.partition(' ')[0]}: no such file" for one in found.values()]
        yield Finding(
            PROGRAMS_GONE, node.name, f"missing, or not able to start: {', '.join(found)}",
            limited(shown), (WITH_BUNDLE,),
            explains=frozenset(unit for service in services for unit in service.units) | {CONFIG_CHANGED.code},
        )  # fmt: skip


def _every_unit() -> frozenset[str]:
    return frozenset(unit for service in every_service() for unit in service.units)


def _reads(path: str) -> list[Service]:
    """The services that read the file *path* when they start or reload."""
    found = [one for one in every_service() if path in (*one.restarted_by, *one.reloaded_by)]
    return [haproxy.SERVICE] if path == paths.NODE_PEM else found  # renewed without a reload


def unchanged(snapshot: Snapshot) -> Iterator[Finding]:
    """Files, directories and users are as init made them."""
    for node, facts in snapshot.answering:
        if facts.running:
            continue  # the run makes them so just now
        others: list[Difference] = []
        units: list[Difference] = []
        mirrors: list[Difference] = []
        for difference in node.differences:
            change = difference.change
            if difference.phase.partition("/")[0] == "containerd":
                if change is not None and difference.error is None and not _MODES.fullmatch(difference.text):
                    mirrors.append(difference)
            elif isinstance(change, NodeCertificate) and ": the certificate " in difference.text:
                continue  # which `certified` says, unless it is only due for a new one
            elif isinstance(change, File | NodeCertificate) and (
                difference.error is None or difference.error.code == "FileUnreadable"
            ):
                if (damaged := _damaged(node, change, difference)) is not None:
                    yield damaged
                else:
                    (units if change.path.startswith(f"{paths.UNITS}/") else others).append(difference)
            elif isinstance(change, Directory | User | Recorded):
                others.append(difference)
        for kind, message, found in (
            (CONFIG_CHANGED, "{} from what init writes", others),
            (UNIT_CHANGED, "{} from what init writes", units),
            (MIRRORS_CHANGED, "containerd's configuration for the registry is missing or was edited", mirrors),
        ):
            if found:
                words = message.format(_names(found))
                look = [here("init --dry-run --diff")] if kind is not MIRRORS_CHANGED else []
                fix = here("init phase containerd" if kind is MIRRORS_CHANGED else "init")
                yield Finding(kind, node.name, words, _shown(found), (*look, fix), subject=kind.code)


def _names(found: Sequence[Difference]) -> str:
    paths_ = [getattr(one.change, "path", getattr(one.change, "title", one.phase)) for one in found]
    if len(paths_) > 2:
        return f"{paths_[0]} and {len(paths_) - 1} more differ"
    return f"{' and '.join(map(str, paths_))} {'differ' if len(paths_) > 1 else 'differs'}"


def _shown(found: Sequence[Difference]) -> list[str]:
    """The first changed lines of each difference."""
    lines = []
    for one in found:
        path = getattr(one.change, "path", "") or getattr(one.change, "title", one.phase)
        changed = [line for line in one.text.splitlines() if re.match(r"[+-](?![+-])", line)] or one.text.splitlines()
        lines += [f"{path}: {line}" if not line.startswith(str(path)) else line for line in changed[:2]]
    return limited(lines)


def _fails(unit: Unit) -> bool:
    """Whether a unit that is down is so by itself: it was not stopped, masked or removed."""
    return unit.there and not unit.masked and (unit.get("ActiveState"), unit.get("Result")) != ("inactive", "success")


def _damaged(node: NodeSnapshot, change: File | NodeCertificate, difference: Difference) -> Finding | None:
    """That a service does not run, one of whose files was changed."""
    facts = node.facts
    for service in _reads(change.path) if facts is not None else ():
        known = [unit for name in service.units if (unit := node.unit(name)) is not None]
        stopped = [unit for unit in known if facts is not None and is_down(facts, unit) and _fails(unit)]
        if stopped:
            words = [f"journalctl -u {unit.name}: {line}" for unit in stopped[:1] for line in unit.words[-3:]]
            return Finding(
                CONFIG_DAMAGED, node.name, f"{change.path} was changed, and {stopped[0].name} does not start with it",
                limited([*_shown([difference])[:2], *words]), (here("init"),),
                subject=change.path, explains=frozenset(service.units),
            )  # fmt: skip
    return None


def secret(snapshot: Snapshot) -> Iterator[Finding]:
    """Each node has the secrets, for root alone."""
    have = [node.name for node, facts in snapshot.answering if facts.secrets]
    if (error := snapshot.secrets_error) is not None:
        fix = [Command(error.host or "the node", f"ls -l {secrets.PATH}  # then: {error.hint}")]
        if error.host and error.message.startswith(f"{secrets.PATH} is damaged") and set(have) - {error.host}:
            away = f"mv {secrets.PATH} /root/  # init takes the file of another node"
            fix = [Command(error.host, away), here("init")]
        yield Finding(
            SECRETS_UNUSABLE, error.host, error.message, [f"[{error.code}] {error.message}"], fix,
            explains=frozenset({SECRETS_MISSING.code}),
        )  # fmt: skip
    lost = not (have or snapshot.unreachable) and any(node.stores for node in snapshot.nodes)
    for node, facts in snapshot.answering:
        if not node.installed:
            continue
        if not facts.secrets:
            copy = f"install -m 600 COPY {secrets.PATH}  # from a backup; on one node: docs/recovery.md, The secrets"
            yield Finding(SECRETS_MISSING, node.name, f"{secrets.PATH} is missing",
                          [f"stat {secrets.PATH}: no such file or directory"],
                          (*((Command(node.name, copy),) if lost else ()), here("init")))  # fmt: skip
        elif facts.secrets != "600 root:root":
            yield Finding(
                SECRETS_EXPOSED, node.name, f"{secrets.PATH} is accessible to users other than root",
                [f"stat {secrets.PATH}: {facts.secrets}"],
                (Command(node.name, f"chmod 600 {secrets.PATH} && chown root:root {secrets.PATH}"),),
            )  # fmt: skip
        modes = [one.text for one in node.differences if one.error is None and _MODES.fullmatch(one.text)
                 and one.phase.partition("/")[0] == "containerd"]  # fmt: skip
        if modes and not facts.running:
            yield Finding(SECRETS_EXPOSED, node.name, "the password of pull is accessible to users other than root",
                          limited("\n".join(modes).splitlines()), (here("init phase containerd"),))  # fmt: skip


def certified(snapshot: Snapshot) -> Iterator[Finding]:
    """Each node presents a certificate that clients accept, and will for a while."""
    moment = snapshot.moment
    for node, _ in snapshot.answering:
        status = node.status
        wrong = [one.text for one in node.differences if isinstance(one.change, NodeCertificate)
                 and re.search(r"not issued by the cluster CA|does not name", one.text)]  # fmt: skip
        ends = status.certificate_ends
        if ends is not None and ends < moment:
            yield Finding(CERTIFICATE_EXPIRED, node.name, f"its certificate expired on {ends:%Y-%m-%d}",
                          [f"{paths.NODE_PEM}: notAfter={ends:%Y-%m-%dT%H:%M:%SZ}"], (here("init"),),
                          explains=_certificate_codes())  # fmt: skip
        elif status.certificate_flaw is not None and status.certificate_flaw[0] == "OtherAuthority":
            yield Finding(CERTIFICATE_WRONG, node.name, "it presents a certificate of another CA",
                          [status.certificate_flaw[1], *wrong], (here("init"),),
                          explains=_certificate_codes())  # fmt: skip
        elif wrong:
            yield Finding(CERTIFICATE_WRONG, node.name, f"{paths.NODE_PEM} is not a certificate for this node",
                          wrong, (here("init"),), explains=_certificate_codes())  # fmt: skip
        elif status.certificate_flaw is not None and status.certificate_flaw[0] == "NotLoaded":
            yield Finding(CERTIFICATE_NOT_LOADED, node.name, "a proxy has not loaded the certificate on disk",
                          [status.certificate_flaw[1]],
                          (Command(node.name, "systemctl reload 'kubeadm-registry-haproxy@*'"),))  # fmt: skip
        elif ends is not None and ends - moment < timedelta(days=CERTIFICATE_WARNING_DAYS):
            yield Finding(CERTIFICATE_EXPIRES, node.name, f"its certificate expires on {ends:%Y-%m-%d}",
                          [f"{paths.NODE_PEM}: notAfter={ends:%Y-%m-%dT%H:%M:%SZ}"], (here("init"),))  # fmt: skip
    lasts = [one.status.authority_ends for one in snapshot.nodes if one.status.authority_ends is not None]
    if lasts and min(lasts) - moment < pki.AUTHORITY_WARNING:
        kind, verb = (CA_EXPIRED, "expired") if min(lasts) < moment else (CA_EXPIRES, "expires")
        yield Finding(kind, "", f"the cluster CA {verb} on {min(lasts):%Y-%m-%d}",
                      [f"{paths.CA}: notAfter={min(lasts):%Y-%m-%dT%H:%M:%SZ}"],
                      (here("certs renew --ca --nodes clients.txt  # docs/certificates.md, A new CA"),))  # fmt: skip


def _certificate_codes() -> frozenset[str]:
    kinds = (CERTIFICATE_WRONG, CERTIFICATE_NOT_LOADED, CERTIFICATE_EXPIRES)
    return frozenset(kind.code for kind in kinds) | {CONFIG_CHANGED.code}


def runs(snapshot: Snapshot) -> Iterator[Finding]:
    """No run hangs, or ended in the middle."""
    for node, facts in snapshot.answering:
        if facts.running:
            since = re.search(r"since (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", facts.lock)
            began = datetime.strptime(since[1], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) if since else None
            age = timedelta(seconds=facts.clock - began.timestamp()) if began else timedelta()
            who, pid = facts.lock.partition(",")[0], facts.lock.rpartition(" ")[2]
            line = f"{paths.LOCK}.who: {facts.lock}"
            if age > HANGS:
                yield Finding(RUN_HANGS, node.name, f"a run has held the lock for {age.total_seconds() / 3600:.1f} h",
                              [line], (Command(node.name, f"kill {pid}  # unless {who} still works: see there first"),
                                       here("init  # or the command that was ended")))  # fmt: skip
        elif facts.unfinished:
            yield Finding(RUN_INTERRUPTED, node.name, "a run was interrupted while it wrote a file",
                          limited([f"find: {path}" for path in facts.unfinished]), (here("init"),))  # fmt: skip


KINDS = (
    NOT_INSTALLED, NODE_BARE, CONFIGURATION_GONE, INCOMPLETE, PROGRAMS_GONE, CONFIG_DAMAGED, CONFIG_CHANGED,
    UNIT_CHANGED,
    MIRRORS_CHANGED, SECRETS_MISSING, SECRETS_EXPOSED, SECRETS_UNUSABLE, CERTIFICATE_WRONG, CERTIFICATE_EXPIRED,
    CERTIFICATE_EXPIRES, CERTIFICATE_NOT_LOADED, CA_EXPIRED, CA_EXPIRES, RUN_HANGS, RUN_INTERRUPTED,
)  # fmt: skip
