"""Puts the operator into a cluster by server-side apply, looks whether it leads, and takes it out again."""

from __future__ import annotations

import base64
import http
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Self

from cryptography import x509

from kubeadm_registry import pki
from kubeadm_registry.config import RegistryCluster
from kubeadm_registry.custom_resources.admission import guard
from kubeadm_registry.custom_resources.definitions import DEFINITIONS, GROUP, VERSION
from kubeadm_registry.custom_resources.deployment import installation, secret
from kubeadm_registry.custom_resources.names import NAME, NAMESPACE
from kubeadm_registry.custom_resources.roles import LEASE, replacing
from kubeadm_registry.errors import CommandTimeout, ConnectionFailed
from kubeadm_registry.formats import NewerFormat, split
from kubeadm_registry.printable import counted
from kubeadm_registry.secrets import Secrets
from kubeadm_registry.upkeep.api import Answer, Api

_PLURALS = {
    "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings",
    "CustomResourceDefinition": "customresourcedefinitions", "Deployment": "deployments", "Lease": "leases",
    "Namespace": "namespaces", "NetworkPolicy": "networkpolicies", "PodDisruptionBudget": "poddisruptionbudgets",
    "Role": "roles", "RoleBinding": "rolebindings", "Secret": "secrets", "Service": "services",
    "ServiceAccount": "serviceaccounts", "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}  # fmt: skip
_DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}"
_MANAGER = "kubeadm-registry"
#: What this release knows of the Secret; the helper's are there with a helper only.
_KEYS = ("ca.crt", "username", "password", "retention-key", "metrics.pem", "helper-key", "helper-hosts")
#: Seconds that one request may take.
_REQUEST = 30.0
_EVERY = 0.5
#: A certificate for metrics that ends earlier is replaced.
_LASTS = timedelta(days=365)
Object = Mapping[str, Any]
Tell = Callable[[str], None]


def path_of(one: Object) -> str:
    """Where the API server has the object."""
    version, metadata = one["apiVersion"], one["metadata"]
    space = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"/{'apis' if '/' in version else 'api'}/{version}{space}/{_PLURALS[one['kind']]}/{metadata['name']}"


def _title(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


@dataclass(frozen=True, slots=True)
class HelperKey:
    """The operator's own SSH key, *private* and *public* (in OpenSSH's formats), and *hosts*, the nodes' host keys as
    known_hosts has them."""

    private: str = field(repr=False)
    public: str
    hosts: str = ""

    @classmethod
    def of(cls, private: str, hosts: str = "") -> Self:
        """The key *private*, or a new one if that is none."""
        private, public = pki.ssh_key(private)
        return cls(private, public, hosts)


def helper_key(api: Api) -> HelperKey:
    """The key in the Secret that is there, or a new one. Raises ConnectionFailed."""
    before = _decoded(read(api, path_of(secret({}))))
    return HelperKey.of(before.get("helper-key", ""), before.get("helper-hosts", ""))


def credentials(secrets: Secrets, before: Mapping[str, str], helper: HelperKey | None) -> dict[str, str]:
    """What the operator's Secret holds for the cluster of *secrets*; without *helper* the operator carries nothing out.

    The certificate for metrics is that of the Secret *before*, while it is good; what a newer release has added there
    stays.
    """
    metrics = before.get("metrics.pem", "")
    if not _is_good(secrets.ca_certificate, metrics):
        pair = pki.issue(pki.Pair(secrets.ca_certificate, secrets.ca_key), "operator", [], unit=pki.METRICS_UNIT)
        metrics = pair.certificate + pair.key
    return {
        **split(before, _KEYS)[1],
        "ca.crt": secrets.trust,
        "username": "push",
        "password": secrets.password("push"),
        "retention-key": secrets.retention_key,
        "metrics.pem": metrics,
        **({"helper-key": helper.private, "helper-hosts": helper.hosts} if helper is not None else {}),
    }


def _is_good(authority: str, certificate: str) -> bool:
    """Whether *certificate* (PEM) is of the *authority* and lasts for a while."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError:
        return False
    return pki.is_of(authority, found) and found.not_valid_after_utc - datetime.now(UTC) > _LASTS


def refuse_older(api: Api) -> None:
    """Raise NewerFormat if the cluster's definitions have fields that this release's lack.

    The API server drops what a definition does not know when it writes an object. Raises ConnectionFailed.
    """
    for one in (each.as_object() for each in DEFINITIONS):
        there = read(api, path_of(one))
        if there is not None and (more := sorted(_fields(there) - _fields(one))):
            raise NewerFormat(
                f"{_title(one)} is that of a newer release, with {counted(len(more), 'field')} that this one does not "
                f"know ({more[0]}): objects would lose what they say there"
            )


def _fields(definition: Object) -> set[str]:
    """The fields of all its versions, each as the path below its version."""
    found: set[str] = set()

    def look(schema: Object, path: str) -> None:
        for name, below in schema.get("properties", {}).items():
            found.add(f"{path}.{name}")
            look(below, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                look(schema[key], path)

    for version in definition["spec"]["versions"]:
        look(version["schema"]["openAPIV3Schema"], version["name"])
    return found


def install(
    api: Api, config: RegistryCluster, secrets: Secrets, tell: Tell, *,
    image: str, seconds: float, helper: HelperKey | None = None, replaces: bool = False, dry_run: bool = False,
) -> str:  # fmt: skip
    """Apply everything, and wait until one replica leads; returns its name.

    *helper* is its key for the nodes. *replaces*: it may write into the spec that a new node takes the place of one.
    A *dry_run* only tells what would change, and returns nothing.

    Raises ConnectionFailed (ClusterRefused, ...), CommandTimeout if that takes more than *seconds*.
    """
    end = time.monotonic() + seconds
    definitions = [each.as_object() for each in DEFINITIONS]
    for one in definitions:
        apply(api, one, tell, dry_run=dry_run)
    for one in () if dry_run else definitions:
        _wait(f"{_title(one)} to be served", partial(_is_established, api, path_of(one)), end)
    for one in guard():
        apply(api, one, tell, dry_run=dry_run)
    namespace, *others = installation(config, pulled_as=image, api_ports=api_ports(api))
    apply(api, namespace, tell, dry_run=dry_run)
    before = read(api, path_of(secret({})))
    apply(api, secret(credentials(secrets, _decoded(before), helper)), tell, dry_run=dry_run)
    for one in others:
        apply(api, one, tell, dry_run=dry_run)
    for one in replacing():
        (apply if replaces else _delete)(api, one, tell, dry_run=dry_run)
    if dry_run:
        return ""
    # One of the release before may lead, and go on where the new ones cannot start.
    _wait("pods of this release to take the place of those before", partial(_is_rolled_out, api), end)
    start = _lease(api)
    _wait("a replica of the operator to lead", lambda: _lease(api).renewed_since(start), end)
    return _lease(api).holder


def api_ports(api: Api) -> set[int]:
    """Where the API servers of the cluster listen, behind the Service ``kubernetes``. Raises ConnectionFailed."""
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    found = read(api, f"{slices}?labelSelector=kubernetes.io/service-name%3Dkubernetes") or {"items": []}
    return {port["port"] for one in found["items"] for port in one.get("ports") or () if port.get("port")}


def refresh(api: Api, secrets: Secrets, tell: Tell) -> None:
    """Have the operator's Secret, if there is one, say what *secrets* say now; its key for the nodes stays.

    The operator reads it for each round, so it needs no restart. Raises ConnectionFailed.
    """
    before = read(api, path_of(secret({})))
    if before is not None:
        there = _decoded(before)
        apply(api, secret({**there, **credentials(secrets, there, None)}), tell)


def uninstall(api: Api, config: RegistryCluster, tell: Tell, *, dry_run: bool = False) -> None:
    """Take away what ``install`` applied, but not the definitions with their objects, nor the guard.

    A *dry_run* only tells what would go.

    Raises ConnectionFailed.
    """
    objects = [*installation(config), *replacing(), secret({})]
    # The namespace goes last, and what is in it before that: then nothing waits for what is gone.
    for one in [*reversed(objects[1:]), objects[0]]:
        _delete(api, one, tell, dry_run=dry_run)


def _delete(api: Api, one: Object, tell: Tell, *, dry_run: bool = False) -> None:
    if dry_run:
        if read(api, path_of(one)) is not None:
            tell(f"{_title(one)} would be deleted")
        return
    answer = api.send("DELETE", path_of(one), b'{"propagationPolicy": "Background"}', seconds=_REQUEST)
    if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.ACCEPTED, http.HTTPStatus.NOT_FOUND):
        raise _refused("DELETE", one, answer)
    if answer.status != http.HTTPStatus.NOT_FOUND:
        tell(f"{_title(one)} deleted")


@dataclass(frozen=True, slots=True)
class Found:
    """How the operator is: whether it is *installed*, with which *image*; how many replicas are *ready* of how many
    *wanted*; who *leads* (or empty); the *conditions* of the RegistryCluster."""

    installed: bool
    image: str = ""
    ready: int = 0
    wanted: int = 0
    leads: str = ""
    cluster: str = ""
    conditions: tuple[Mapping[str, Any], ...] = ()


def status(api: Api, *, seconds: float = 20.0) -> Found:
    """How the operator is: whether somebody leads is seen by looking twice, up to *seconds* apart.

    Raises ConnectionFailed.
    """
    deployment = read(api, _DEPLOYMENT)
    if deployment is None:
        return Found(installed=False)
    start, end = _lease(api), time.monotonic() + seconds
    now = start
    while start.holder and not (now := _lease(api)).renewed_since(start) and time.monotonic() < end:
        time.sleep(_EVERY)
    listed = read(api, f"/apis/{GROUP}/{VERSION}/registryclusters") or {"items": []}
    found: dict[str, Any] = next(iter(listed["items"]), {})
    return Found(
        True,
        deployment["spec"]["template"]["spec"]["containers"][0]["image"],
        deployment.get("status", {}).get("readyReplicas", 0),
        deployment["spec"]["replicas"],
        now.holder if now.renewed_since(start) else "",
        found.get("metadata", {}).get("name", ""),
        tuple(found.get("status", {}).get("conditions", ())),
    )


def apply(api: Api, one: Object, tell: Tell, *, dry_run: bool = False) -> None:
    """Apply *one*, and say whether that changed something, or would (*dry_run*). Raises ConnectionFailed."""
    path = path_of(one)
    before = read(api, path)
    if dry_run and before is None:  # nor may its namespace be there
        tell(f"{_title(one)} would be created")
        return
    answer = api.send(
        "PATCH", f"{path}?fieldManager={_MANAGER}&force=true{'&dryRun=All' * dry_run}", json.dumps(one).encode(),
        kind="application/apply-patch+yaml", seconds=_REQUEST,
    )  # fmt: skip
    if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED):
        raise _refused("apply", one, answer)
    after = json.loads(answer.body)
    if before is None:
        tell(f"{_title(one)} created")
    elif dry_run:
        if _content(before) != _content(after):
            tell(f"{_title(one)} would be changed")
    elif before["metadata"]["resourceVersion"] != after["metadata"]["resourceVersion"]:
        tell(f"{_title(one)} changed")


def _content(found: Object) -> Object:
    """An object without what the API server keeps about it."""
    kept = {key: value for key, value in found.items() if key not in ("metadata", "status")}
    own = {"managedFields", "resourceVersion", "generation"}
    return {**kept, "metadata": {key: value for key, value in found["metadata"].items() if key not in own}}


@dataclass(frozen=True, slots=True)
class _Lease:
    holder: str
    version: str

    def renewed_since(self, before: _Lease) -> bool:
        """Whether somebody has it who has written to it since."""
        return bool(self.holder) and self.version != before.version


def _lease(api: Api) -> _Lease:
    found = read(api, f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{LEASE}")
    if found is None:
        return _Lease("", "")
    return _Lease(found.get("spec", {}).get("holderIdentity") or "", found["metadata"]["resourceVersion"])


def _is_established(api: Api, path: str) -> bool:
    found = read(api, path) or {}
    conditions = found.get("status", {}).get("conditions", ())
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _is_rolled_out(api: Api) -> bool:
    """Whether all pods are those of the present Deployment; also where there never were any."""
    found = read(api, _DEPLOYMENT) or {}
    status = found.get("status", {})
    if "observedGeneration" not in status:
        return True
    seen: bool = status["observedGeneration"] >= found["metadata"]["generation"]
    return seen and status.get("updatedReplicas", 0) == status.get("replicas", 0)


def _decoded(found: Object | None) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in ((found or {}).get("data") or {}).items()}


def read(api: Api, path: str) -> dict[str, Any] | None:
    """The object at *path* of the API; None if there is none. Raises ConnectionFailed."""
    answer = api.get(path, by=time.monotonic() + _REQUEST)
    if answer.status == http.HTTPStatus.NOT_FOUND:
        return None
    if answer.status != http.HTTPStatus.OK:
        text = f"the API server refuses GET {path}: {answer.failure}"
        raise ConnectionFailed(text, hint=_HINT, code="ClusterRefused")
    found: dict[str, Any] = json.loads(answer.body)
    return found


_HINT = "use the credentials of an administrator, such as kubeadm's admin.conf"


def _refused(what: str, one: Object, answer: Answer) -> ConnectionFailed:
    return ConnectionFailed(
        f"the API server refuses to {what.lower()} {_title(one)}: {answer.failure}", hint=_HINT, code="ClusterRefused"
    )


def _wait(what: str, is_so: Callable[[], bool], end: float) -> None:
    while not is_so():
        if time.monotonic() > end:
            raise CommandTimeout(
                f"timed out waiting for {what}",
                hint=f"inspect its pods: kubectl --namespace {NAMESPACE} describe pods; then run it again",
            )
        time.sleep(_EVERY)
