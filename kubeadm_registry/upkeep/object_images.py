"""Which images an object names. Each as the user wrote it, and with the imageID of a status beside it, or an empty one.

The forms of an imageID, and what can be believed of it, are in ``retention.protected``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from kubeadm_registry.oci.references import told
from kubeadm_registry.upkeep.structs import (
    Container,
    ControllerRevision,
    CronJob,
    Pod,
    PodSpec,
    PodStatus,
    PodTemplate,
    Template,
    TemplateContainer,
    TemplateSpec,
    Volume,
    Workload,
)

NamedImage = tuple[str, str]
"""A reference and an imageID; one of them may be empty."""


def of_pod(pod: Pod) -> Iterator[NamedImage]:
    """The images of *pod*: each of its spec with what the status says of it, and what only the status has."""
    status = pod.status or PodStatus()
    groups = (status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses)
    states = {state.name: state for group in groups for state in group or ()}
    mounted = {
        mount.name: mount.volume_status.image.image_ref or ""
        for state in states.values()
        for mount in state.volume_mounts or ()
        if mount.volume_status and mount.volume_status.image
    }
    for container in _containers(pod.spec):
        state = states.pop(container.name, None)
        yield from _named(container.image, state.image_id if state else "")
    for volume in _image_volumes(pod.spec):
        yield from _named(volume.image.reference if volume.image else "", mounted.get(volume.name, ""))
    for state in states.values():
        yield from _named(state.image, state.image_id)


def of_workload(workload: Workload) -> Iterator[NamedImage]:
    """The images of the template of *workload*."""
    return of_template(workload.spec.template)


def of_cron_job(job: CronJob) -> Iterator[NamedImage]:
    """The images of what *job* starts."""
    return of_template(job.spec.job_template.spec.template)


def of_pod_template(template: PodTemplate) -> Iterator[NamedImage]:
    """The images of *template*."""
    return of_template(template.template)


def of_template(template: Template | None) -> Iterator[NamedImage]:
    """The images of pods that are made of *template*, and those that these are told of."""
    if template is not None and (spec := template.spec) is not None:
        for group in (spec.containers, spec.init_containers, spec.ephemeral_containers):
            for container in group or ():
                yield from _named(container.image)
                yield from ((name, "") for name in _told(container))
        for volume in _image_volumes(spec):
            yield from _named(volume.image.reference if volume.image else "")


def of_revision(revision: ControllerRevision) -> Iterator[NamedImage]:
    """The images of everything in the data of *revision* that looks like the spec of a pod, however deep, and those
    that such pods are told of.

    Kubernetes' own controllers keep ``spec.template`` there (getPatch in pkg/controller/{daemon,statefulset}). Values
    of other types are passed over: only revisions of others can have them, and these may hold anything.
    """
    waiting = [revision.data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, Mapping):
            waiting += value.values()
            for key in ("containers", "initContainers", "ephemeralContainers"):
                for container in _mappings(value.get(key)):
                    yield from _named(_text(container.get("image")))
                    with suppress(msgspec.ValidationError):
                        yield from ((name, "") for name in _told(msgspec.convert(container, TemplateContainer)))
            for volume in _mappings(value.get("volumes")):
                for image in _mappings([volume.get("image")]):
                    yield from _named(_text(image.get("reference")))


def of_text(text: str) -> NamedImage:
    """The image that *text*, a value in a custom resource, names; perhaps by a URL, as Flux and Helm name charts.

    Which one a name without a tag means may stand elsewhere in the object, as a chart's version or ``image.tag`` does.
    So the text is the imageID as well: no image has it, and all tags of the repository stay.
    """
    name = text.removeprefix("oci://")
    return name, "" if {":", "@"} & {*name.rpartition("/")[2]} else text


def _named(reference: str | None, image_id: str | None = "") -> Iterator[NamedImage]:
    # A container whose image is gone by name still has an imageID, and then that is all there is to go by.
    if reference or image_id:
        yield reference or image_id or "", image_id or ""


def _told(container: TemplateContainer) -> Iterator[str]:
    """The images in command, arguments and environment of *container*, from which a controller makes pods later."""
    words = [*(container.command or ()), *(container.args or ())]
    return told(words, ((one.name, one.value or "") for one in container.env or ()))


def _containers(spec: PodSpec) -> Iterator[Container]:
    for group in (spec.containers, spec.init_containers, spec.ephemeral_containers):
        yield from group or ()


def _image_volumes(spec: PodSpec | TemplateSpec) -> Iterable[Volume]:
    return (volume for volume in spec.volumes or () if volume.image is not None)


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    return (each for each in value if isinstance(each, Mapping)) if isinstance(value, list) else iter(())


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
