"""What is decoded of an API server's lists: where an image may be named, and nothing else. The rest is not decoded.

Source: k8s.io/api (core/v1/types.go, apps/v1/types.go, batch/v1/types.go). Null and absent are the same. A value of
another type than the API says is an error (msgspec.ValidationError), never a shorter list.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec


# Nothing here is part of a cycle, and a page has some ten thousand of them for the collector to look at.
class _Part(msgspec.Struct, rename="camel", gc=False):
    """A part of an object."""


class Metadata(_Part):
    """Of an object."""

    name: str
    namespace: str = ""


class Container(_Part):
    """Of any sort. In a template the image may be absent, to be filled in by a controller."""

    name: str = ""
    image: str | None = None


class VolumeImage(_Part):
    """The image that an image volume mounts."""

    reference: str | None = None


class Volume(_Part):
    """Of any type; *image* if it is an image volume."""

    name: str = ""
    image: VolumeImage | None = None


class PodSpec(_Part):
    """Of a pod or a template."""

    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    ephemeral_containers: list[Container] | None = None
    volumes: list[Volume] | None = None


class MountedImage(_Part):
    """What an image volume has become (feature gate ImageVolumeWithDigest)."""

    image_ref: str | None = None


class MountedVolume(_Part):
    """The status of a mounted volume."""

    image: MountedImage | None = None


class Mount(_Part):
    """The status of a mount; *name* is the volume's."""

    name: str = ""
    volume_status: MountedVolume | None = None


class ContainerStatus(_Part, rename={"image_id": "imageID", "volume_mounts": "volumeMounts"}):
    """With containerd *image* is the first name of that image on the node, not the pod's."""

    name: str = ""
    image: str | None = None
    image_id: str | None = None
    volume_mounts: list[Mount] | None = None


class PodStatus(_Part):
    """Of a pod."""

    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    ephemeral_container_statuses: list[ContainerStatus] | None = None


class Pod(_Part):
    """Also the mirror pod of a static one."""

    metadata: Metadata
    spec: PodSpec
    status: PodStatus | None = None


class Variable(_Part):
    """Of a container's environment; null where its value is from elsewhere."""

    name: str = ""
    value: str | None = None


class TemplateContainer(Container):
    """What else may name images: controllers are told by these what to start pods with."""

    command: list[str] | None = None
    args: list[str] | None = None
    env: list[Variable] | None = None


class TemplateSpec(_Part):
    """The spec of a template: as that of a pod, of which this much is not decoded, since there are so many."""

    containers: list[TemplateContainer] | None = None
    init_containers: list[TemplateContainer] | None = None
    ephemeral_containers: list[TemplateContainer] | None = None
    volumes: list[Volume] | None = None


class Template(_Part):
    """Of pods."""

    spec: TemplateSpec | None = None


class WorkloadSpec(_Part):
    """Only a ReplicationController may have no template."""

    template: Template | None = None


class Workload(_Part):
    """ReplicaSet, Deployment, StatefulSet, DaemonSet, ReplicationController or Job."""

    metadata: Metadata
    spec: WorkloadSpec


class JobTemplate(_Part):
    """Of a CronJob."""

    spec: WorkloadSpec


class CronJobSpec(_Part):
    """Of a CronJob."""

    job_template: JobTemplate


class CronJob(_Part):
    """One level deeper than the other workloads."""

    metadata: Metadata
    spec: CronJobSpec


class PodTemplate(_Part):
    """The kind of that name, which has no spec above its template."""

    metadata: Metadata
    template: Template


class ControllerRevision(_Part):
    """*data* has any shape: not only the controllers of Kubernetes itself keep revisions."""

    metadata: Metadata
    data: Any = None


class ListMetadata(
    msgspec.Struct, rename={"version": "resourceVersion", "token": "continue", "left": "remainingItemCount"}
):
    """Of a page. *left* None: the server does not say how many are left."""

    version: str = ""
    token: str = ""
    left: int | None = None


Item = TypeVar("Item")


class Page(msgspec.Struct, Generic[Item], rename="camel"):
    """A part of a list. *items* is required: a body without them, or with null, is not a list."""

    kind: str
    api_version: str
    metadata: ListMetadata
    items: list[Item]


class Failure(msgspec.Struct):
    """A ``Status`` that comes instead of what was asked for (apimachinery, pkg/apis/meta/v1)."""

    message: str = ""


class UidMetadata(msgspec.Struct):
    """Of an object whose identity matters."""

    uid: str


class Identified(msgspec.Struct):
    """An object of which only the identity matters."""

    metadata: UidMetadata


class ServerVersion(msgspec.Struct, rename="camel"):
    """What ``/version`` answers, such as ``v1.36.3``."""

    git_version: str
