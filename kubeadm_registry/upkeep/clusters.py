"""What a cluster uses: every image that one of its objects names, or the reason why that is not known.

Every list is of one revision, but no two lists are. So owners are read before what they make, and pods last: what is
made meanwhile is then seen below. Containers of a node that was deleted are in no list; who protects their images for a
while is ``retention``, by what was used before.
"""

from __future__ import annotations

import http
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nsmallest
from typing import Any, TypeVar

import msgspec

from kubeadm_registry.containerd.settings import DEFAULT_PAUSE_IMAGES, PAUSE_IMAGES
from kubeadm_registry.errors import ConfigError, ConnectionFailed
from kubeadm_registry.images.kubernetes_images import images_of, known_patches
from kubeadm_registry.printable import shown
from kubeadm_registry.retention.jsonpath import JsonPath, parse
from kubeadm_registry.retention.reasons import Reason
from kubeadm_registry.retention.uses import NAMED, Use, failed_list, grouped
from kubeadm_registry.upkeep import object_images, structs
from kubeadm_registry.upkeep.api import Api, clause
from kubeadm_registry.upkeep.lists import AGAIN, Expired, ListFailed, Resource, parts, triples
from kubeadm_registry.upkeep.structs import Metadata, Page

#: Seconds for everything that is read of a cluster. 50,000 pods take some seconds.
DEADLINE = 120.0
#: Objects a page; custom resources may be of a megabyte each.
_PAGE, _LARGE = 500, 50

_WORKLOAD = partial(Resource, decoded=Page[structs.Workload], images=object_images.of_workload, page=_PAGE)
#: Owners before what they make; pods last.
RESOURCES = (
    Resource("batch/v1", "cronjobs", "CronJob", Page[structs.CronJob], object_images.of_cron_job),
    _WORKLOAD("batch/v1", "jobs", "Job"),
    _WORKLOAD("apps/v1", "deployments", "Deployment"),
    # A Deployment's old ones are what a rollback returns to; so are the revisions of StatefulSets and DaemonSets.
    _WORKLOAD("apps/v1", "replicasets", "ReplicaSet"),
    _WORKLOAD("apps/v1", "statefulsets", "StatefulSet"),
    _WORKLOAD("apps/v1", "daemonsets", "DaemonSet"),
    Resource(
        "apps/v1",
        "controllerrevisions",
        "ControllerRevision",
        Page[structs.ControllerRevision],
        object_images.of_revision,
    ),
    _WORKLOAD("v1", "replicationcontrollers", "ReplicationController"),
    Resource("v1", "podtemplates", "PodTemplate", Page[structs.PodTemplate], object_images.of_pod_template),
    Resource("v1", "pods", "Pod", Page[structs.Pod], object_images.of_pod),
)
Found = TypeVar("Found")
#: GROUP/VERSION/PLURAL
_CUSTOM = re.compile(r"((?:[a-z0-9-]+\.)+[a-z0-9-]+/v[a-z0-9]+)/([a-z0-9-]+)")


@dataclass(frozen=True, slots=True)
class Marker:
    """A number that a cluster is told to remember before it is asked what it uses: the *newest*, and the last one that
    was *confirmed*, since the ledger has it. One whose etcd was restored from a backup remembers an earlier one."""

    newest: int = 0
    confirmed: int = 0

    def fits(self, known: int) -> bool:
        """Whether the cluster may remember this while the ledger has the number *known*.

        That is the newest one, or the one before: who told the cluster of the newest may have ended before the ledger
        had it.
        """
        return known in (self.newest, self.confirmed)


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """What the cluster *uid*, whose API server has *version* (``v1.36.3``), uses now.

    *uid* is that of the namespace kube-system, which lives as long as the cluster. *uses* are those of the lists that
    could be read. With *problems* one could not, and nothing is known to be unused. *unmatched* are configured paths
    that led to no image although there are such objects: perhaps a mistake. *revision* is the resourceVersion of the
    last list; it falls when etcd is restored from a snapshot, unless that raises it. *marker* is what it remembers;
    None: it was not asked.
    """

    uid: str
    version: str
    uses: tuple[Use, ...] = ()
    problems: tuple[Reason, ...] = ()
    unmatched: tuple[str, ...] = ()
    revision: str = ""
    marker: Marker | None = None


def read(
    api: Api,
    *,
    paths: Sequence[tuple[str, str]] = (),
    seconds: float = DEADLINE,
    page: int = 0,
) -> ClusterReport:
    """Everything that the cluster behind *api* uses, within *seconds*.

    *paths* say where custom resources name images: a resource (``argoproj.io/v1alpha1/workflows``) and a JSONPath in
    its objects (``.spec.templates[*].container.image``). A resource that the cluster does not have is a problem.

    *page*: objects a page, instead of each resource's own number. Raises ConnectionFailed if the cluster cannot be
    identified (ClusterUnreachable, ClusterNotTrusted, ClusterUnauthorized, ClusterForbidden), ConfigError for *paths*
    (ImagePathInvalid, JsonPathInvalid).
    """
    custom = [*_custom(paths)]
    by = time.monotonic() + seconds
    found = ClusterReport(*_identity(api, by))
    reading = _Reading(api, by)
    for resource in (*(each.resource for each in custom), *RESOURCES):
        # Without an answer to one list there is none to the next, and that one reason is enough.
        if not reading.add(replace(resource, page=page or resource.page)):
            break
    return replace(
        found,
        uses=united(reading.uses),
        problems=tuple(reading.problems),
        unmatched=tuple(text for each in custom for text in each.unmatched()),
        revision=reading.revision,
    )


def running(api: Api) -> ClusterReport:
    """What the pods of the cluster behind *api* use, and nothing else. Raises ConnectionFailed as ``read`` does."""
    by = time.monotonic() + DEADLINE
    found = ClusterReport(*_identity(api, by))
    reading = _Reading(api, by)
    reading.add(RESOURCES[-1])
    return replace(found, uses=united(reading.uses), problems=tuple(reading.problems), revision=reading.revision)


@dataclass(slots=True)
class _Reading:
    """The lists that were read so far."""

    api: Api
    by: float
    uses: list[Use] = field(default_factory=list)
    problems: list[Reason] = field(default_factory=list)
    revision: str = ""

    def add(self, resource: Resource) -> bool:
        """Read the list of *resource*; whether the server answers at all."""
        for left in reversed(range(AGAIN + 1)):
            try:
                self.uses += grouped(self._triples(resource))
            except Expired as error:
                if not left:
                    self.problems.append(failed_list(resource.title, f"it expired {AGAIN + 1} times: {error}"))
                continue
            except ListFailed as error:
                self.problems.append(failed_list(resource.title, str(error)))
            except ConnectionFailed as error:
                self.problems.append(failed_list(resource.title, error.message))
                return False
            break
        return True

    def _triples(self, resource: Resource) -> Iterator[tuple[str, str, str]]:
        for part in parts(self.api, resource, by=self.by):
            yield from triples(part, resource)
            self.revision = part.revision


def united(uses: Iterable[Use]) -> tuple[Use, ...]:
    """*uses* with those of the same reference and imageID as one. Sorted."""
    by_image: dict[tuple[str, str], Use] = {}
    for use in uses:
        key = use.reference, use.image_id
        if (old := by_image.get(key)) is not None:
            users = tuple(nsmallest(NAMED, {*old.users, *use.users}))
            use = replace(use, users=users, count=old.count + use.count)  # noqa: PLW2901
        by_image[key] = use
    return tuple(by_image[key] for key in sorted(by_image))


def _identity(api: Api, by: float) -> tuple[str, str]:
    """The cluster's UID and its server's version."""
    namespace = _object(api, "/api/v1/namespaces/kube-system", structs.Identified, by)
    return namespace.metadata.uid, _object(api, "/version", structs.ServerVersion, by).git_version


def _object(api: Api, path: str, kind: type[Found], by: float) -> Found:
    answer = api.get(path, by=by)
    code, why = (
        "ClusterForbidden" if answer.status == http.HTTPStatus.FORBIDDEN else "ClusterUnreachable",
        answer.failure,
    )
    if answer.status == http.HTTPStatus.OK:
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.MsgspecError as error:
            why = str(error)
    raise ConnectionFailed(
        f"{api.server} does not identify its cluster: GET {path}: {clause(why)}",
        hint="use credentials that may get the namespace kube-system, such as those of kubeadm's admin.conf",
        code=code,
    )


# ---- custom resources -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Custom:
    """A custom resource with the places where it names images; *seen*: objects, *matched*: paths that led somewhere."""

    name: str
    paths: tuple[JsonPath, ...]
    seen: int = 0
    matched: set[str] = field(default_factory=set)

    @property
    def resource(self) -> Resource:
        """What to list."""
        version, _, plural = self.name.rpartition("/")
        return Resource(version, plural, "", Page[dict[str, Any]], self.images, _metadata, _LARGE)

    def images(self, value: Mapping[str, Any]) -> Iterator[object_images.NamedImage]:
        """The images of one object. Raises NotThere."""
        self.seen += 1
        for path in self.paths:
            for text in path.texts(value):
                self.matched.add(path.text)
                yield object_images.of_text(text)

    def unmatched(self) -> Iterator[str]:
        """The paths that led to nothing, if there was anything to look at."""
        return (f"{self.name} {path.text}" for path in self.paths if self.seen and path.text not in self.matched)


def _custom(paths: Sequence[tuple[str, str]]) -> Iterator[_Custom]:
    by_name: dict[str, list[JsonPath]] = {}
    for name, path in paths:
        if not _CUSTOM.fullmatch(name):
            raise ConfigError(
                f"{shown(name)} is not a custom resource",
                hint="write it as GROUP/VERSION/PLURAL, such as argoproj.io/v1alpha1/workflows",
                code="ImagePathInvalid",
            )
        by_name.setdefault(name, []).append(parse(path))
    return (_Custom(name, tuple(found)) for name, found in by_name.items())


def _metadata(value: Mapping[str, Any]) -> Metadata:
    return msgspec.convert(value.get("metadata"), Metadata)


# ---- kubeadm --------------------------------------------------------------------------------------------------------


def kubeadm_set(version: str) -> tuple[str, ...] | Reason:
    """The images that kubeadm asks for in the minor version of *version*, the one before and the next; sorted.

    *version* is that of a running API server (``v1.36.3``); what follows it, as in ``v1.36.3+vendor``, does not count.
    Of each minor version all known patches are taken: which one a cluster had, or will have, is not known. A next one
    that is not known yet has no images here. With them come the pause images that containerd has by default, which no
    object names. Returns the reason if the images of *version* itself are not known.
    """
    plain = re.split(r"[-+]", version, maxsplit=1)[0]
    try:
        found = {*images_of(plain), *PAUSE_IMAGES}
    except ConfigError as error:
        return Reason("SetMissing", f"the images of the set kubeadm are not known: {error.message}", error.hint)
    minor = int(plain.split(".")[1])
    for near in (minor - 1, minor, minor + 1):
        found.update(image for patch in known_patches(near) for image in images_of(patch))
    return tuple(sorted(found))


def kubeadm_sets(versions: Iterable[str | None]) -> dict[str, tuple[str, ...]]:
    """The set ``kubeadm`` for all *versions* that are known; no set if one of them has unknown images."""
    found: set[str] = set()
    for version in filter(None, versions):
        images = kubeadm_set(version)
        if isinstance(images, Reason):
            return {}
        found.update(images)
    return {"kubeadm": tuple(sorted(found))}


# ---- containerd -----------------------------------------------------------------------------------------------------


def pause_images(configured: str | None) -> tuple[str, ...]:
    """The pause images that containerd may start pods with: the one that is *configured*, and its own defaults; sorted.

    Which default a node has is not known here, and a node that ignores *configured* has one as well.
    """
    return tuple(sorted({*DEFAULT_PAUSE_IMAGES, *([configured] if configured else ())}))
