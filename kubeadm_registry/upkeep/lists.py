"""A whole list of objects of one kind, or the reason why it is not whole: never a shorter list.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks. All pages
are of one revision, that of the first page, which is the newest: no ``resourceVersion`` is asked for.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from kubeadm_registry.printable import counted, shown
from kubeadm_registry.retention.jsonpath import NotThere
from kubeadm_registry.upkeep.api import Api, clause
from kubeadm_registry.upkeep.object_images import NamedImage
from kubeadm_registry.upkeep.structs import Metadata, Page

#: How often a list is begun again whose next page was of a revision that etcd no longer has.
AGAIN = 2


class ListFailed(Exception):
    """The list is not whole; the message says why, in one clause."""


class Expired(ListFailed):
    """The revision of the list is gone. A list that begins again has another one."""


def number(revision: str) -> int:
    """A resourceVersion as a number (Kubernetes API concepts, "Resource versions": etcd's are); 0 if it is none."""
    return int(revision) if revision.isascii() and revision.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Resource:
    """What to list: *plural* of the API *version* (``v1``, ``apps/v1``), in all namespaces; empty *kind*: any.

    A page is *decoded*; its objects have *images*, and are named by their *metadata*. *page* of them come at a time.
    """

    version: str
    plural: str
    kind: str
    decoded: type[Page[Any]]
    images: Callable[[Any], Iterable[NamedImage]]
    metadata: Callable[[Any], Metadata] = attrgetter("metadata")
    page: int = 500

    @property
    def group(self) -> str:
        """The API group; empty for the core."""
        return self.version.rpartition("/")[0]

    @property
    def path(self) -> str:
        """Where the API server has them."""
        return f"/{'apis' if self.group else 'api'}/{self.version}/{self.plural}"

    @property
    def title(self) -> str:
        """As a problem names them: ``Deployments``, ``workflows.argoproj.io``."""
        return f"{self.kind}s" if self.kind else f"{self.plural}.{self.group}"


@dataclass(frozen=True, slots=True)
class Part:
    """A page of a list: its *objects*, which are of *kind*, at the *revision* of the whole list."""

    kind: str
    revision: str
    objects: list[Any]


def parts(api: Api, resource: Resource, *, by: float) -> Iterator[Part]:
    """The pages of the list of *resource*, read before the time *by* (time.monotonic).

    Raises ListFailed, also after some pages: only a list that came to its end is whole. Expired, if it may be begun
    again. ConnectionFailed, if there is no answer.
    """
    decoder = msgspec.json.Decoder(resource.decoded)
    query, first, seen, announced = {"limit": str(resource.page)}, "", 0, None
    while True:
        page = _page(api, resource, decoder, query, by)
        first = first or _name(page)
        if _name(page) != first:
            raise ListFailed(f"a page is {_name(page)}, and the first one {first}")
        seen += len(page.items)
        if page.metadata.left is not None:
            # Exact at one revision. Absent where a server does not count (selectors, before 1.15): nothing to compare.
            if announced is not None and seen + page.metadata.left != announced:
                raise _miscounted(announced, seen + page.metadata.left)
            announced = seen + page.metadata.left
        yield Part(page.kind.removesuffix("List"), page.metadata.version, page.items)
        if not page.metadata.token:
            break
        query["continue"] = page.metadata.token
    if announced is not None and seen != announced:
        raise _miscounted(announced, seen)


def _page(
    api: Api, resource: Resource, decoder: msgspec.json.Decoder[Page[Any]], query: dict[str, str], by: float
) -> Page[Any]:
    answer = api.get(resource.path, query, by=by)
    if answer.status == http.HTTPStatus.GONE:
        # Its body has a token that goes on at another revision ("inconsistent list"): what was made meanwhile in the
        # part already read would be missing. It is never taken.
        raise Expired(answer.failure)
    if answer.status == http.HTTPStatus.NOT_FOUND:
        raise ListFailed(f"the cluster does not have {resource.version}/{resource.plural}")
    if answer.status != http.HTTPStatus.OK:
        raise ListFailed(answer.failure)
    try:
        page = decoder.decode(answer.body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ListFailed(f"the response is not a list of them: {clause(str(error))}") from error
    if page.api_version != resource.version or page.kind != (f"{resource.kind}List" if resource.kind else page.kind):
        raise ListFailed(f"the response is {shown(page.kind)} of {shown(page.api_version)}")
    if not page.kind.endswith("List") or not page.metadata.version:
        raise ListFailed(f"the response is {_name(page)}, which is not a list at a revision")
    return page


def triples(part: Part, resource: Resource) -> Iterator[tuple[str, str, str]]:
    """Reference, imageID and user of each image in *part*. Raises ListFailed for an object that is not understood."""
    for each in part.objects:
        user = part.kind
        try:
            metadata = resource.metadata(each)
            user = f"{part.kind} {f'{metadata.namespace}/' if metadata.namespace else ''}{metadata.name}"
            for reference, image_id in resource.images(each):
                yield reference, image_id, user
        except (NotThere, msgspec.ValidationError) as error:
            raise ListFailed(f"{user} is not understood: {error}") from error


def _name(page: Page[Any]) -> str:
    return f"{shown(page.kind)} at revision {shown(page.metadata.version)}"


def _miscounted(announced: int, seen: int) -> ListFailed:
    return ListFailed(f"it has {counted(seen, 'object')}, and {announced} were announced")
