"""The objects of the API server that the operator reads and writes. Every write looks first whether we lead."""

from __future__ import annotations

import http
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from kubeadm_registry.custom_resources import GROUP, VERSION
from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.operator.leadership import Leadership, Outdated, Times
from kubeadm_registry.upkeep.api import Answer, Api
from kubeadm_registry.upkeep.lists import number

Object = dict[str, Any]
CUSTOM = f"/apis/{GROUP}/{VERSION}"
#: Seconds to read a small object or list.
_READ = 20.0


class Objects:
    """Reads and writes by *api*, one request at a time, and writes only while *leadership* holds."""

    def __init__(self, api: Api, leadership: Leadership, times: Times) -> None:
        self._api = api
        self._leadership = leadership
        self._times = times
        self._lock = threading.Lock()
        self._revision = 0
        """The newest of a list."""

    def list(self, plural: str) -> list[Object]:
        """All custom resources of the kind, the oldest first.

        Raises ConnectionFailed (ClusterRefused, ...), and Outdated if the API server went back to an earlier revision.
        """
        path = f"{CUSTOM}/{plural}"
        with self._lock:
            answer = self._api.get(path, by=time.monotonic() + _READ)
            if answer.status != http.HTTPStatus.OK:
                raise refused("GET", path, answer)
            found = json.loads(answer.body)
            self._forward(number(found["metadata"]["resourceVersion"]))
        # Lists have neither kind nor version in their items.
        version, kind = found["apiVersion"], found["kind"].removesuffix("List")
        whole: list[Object] = [{"apiVersion": version, "kind": kind, **one} for one in found["items"]]
        return sorted(whole, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"]))

    def get(self, path: str) -> Object | None:
        """The object at *path*; None if there is none. Raises ConnectionFailed."""
        answer = self._get(path)
        if answer.status == http.HTTPStatus.NOT_FOUND:
            return None
        if answer.status != http.HTTPStatus.OK:
            raise refused("GET", path, answer)
        found: Object = json.loads(answer.body)
        return found

    def create(self, path: str, body: Mapping[str, Any]) -> Object | None:
        """The object that was made below *path*; None if there is one of that name. Raises ConnectionFailed, Lost."""
        answer = self._write("POST", path, body)
        if answer.status == http.HTTPStatus.CONFLICT:
            return None
        if answer.status != http.HTTPStatus.CREATED:
            raise refused("POST", path, answer)
        found: Object = json.loads(answer.body)
        return found

    def put_status(self, plural: str, found: Object, status: Mapping[str, Any]) -> bool:
        """Give the object *found* this *status*; False if it is gone, or has it already.

        Raises ConnectionFailed, with the code ObjectChanged if it is not as it was found, and Lost.
        """
        if found.get("status") == status:
            return False
        path = f"{CUSTOM}/{plural}/{found['metadata']['name']}/status"
        answer = self._write("PUT", path, {**found, "status": status})
        if answer.status == http.HTTPStatus.NOT_FOUND:
            return False
        if answer.status != http.HTTPStatus.OK:
            raise refused("PUT", path, answer)
        return True

    def merge(self, path: str, patch: Mapping[str, Any]) -> bool:
        """Merge *patch* into the object at *path*; False if it is gone. Raises as ``put_status``."""
        answer = self._write("PATCH", path, patch, "application/merge-patch+json")
        if answer.status == http.HTTPStatus.NOT_FOUND:
            return False
        if answer.status != http.HTTPStatus.OK:
            raise refused("PATCH", path, answer)
        return True

    def stop(self) -> None:
        """Return when no write is under way, and let none begin."""
        self._leadership.stop_acting()
        with self._lock:
            pass

    def _forward(self, revision: int) -> None:
        """A list is at this *revision*. A watch that was begun at a later one hears nothing until that comes again, and
        nobody says so."""
        if 0 < revision < self._revision:
            raise Outdated(
                f"the API server is at revision {revision}, and was at {self._revision}: its etcd was restored"
            )
        self._revision = max(self._revision, revision)

    def _get(self, path: str) -> Answer:
        with self._lock:
            return self._api.get(path, by=time.monotonic() + _READ)

    def _write(self, method: str, path: str, body: Mapping[str, Any], kind: str = "application/json") -> Answer:
        content = json.dumps(body).encode()
        with self._lock:
            self._leadership.check()
            return self._api.send(method, path, content, kind=kind, seconds=self._times.margin)


def annotation(found: Object, name: str) -> str:
    """The annotation *name* of an object; empty if it has none."""
    return str((found["metadata"].get("annotations") or {}).get(name, ""))


def refused(method: str, path: str, answer: Answer) -> ConnectionFailed:
    """The error for an *answer* that was not hoped for."""
    if answer.status == http.HTTPStatus.CONFLICT:
        return ConnectionFailed(
            f"{path} was changed at the same time", code="ObjectChanged",
            hint="nothing to do; it is retried automatically",
        )  # fmt: skip
    return ConnectionFailed(
        f"the API server refuses {method} {path}: {answer.failure}",
        hint="check the ClusterRole of the operator, and that the manifests are those of its release",
        code="ClusterRefused",
    )
