"""The logins for registries that the user has on this machine, as podman, skopeo, crane and docker keep them.

Sources: https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md,
https://docs.docker.com/reference/cli/docker/login/ and https://github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubeadm_registry import whoami
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry.client import Login

#: Docker Hub's names in files of logins, and the one by which its helpers know it.
_DOCKER = ("docker.io", "index.docker.io", "registry-1.docker.io")
_DOCKER_HELPED = "https://index.docker.io/v1/"
#: The user name with which a helper says that the secret is an identity token.
_NO_USER = "<token>"
#: Where podman and skopeo keep a user's logins outside of a session: after su, in cron, in a container.
#: Source: https://github.com/containers/image/blob/main/pkg/docker/config/config.go, defaultPerUIDPathFormat.
_NO_SESSION = Path("/run/containers")
#: Seconds for a program of the user's that keeps logins.
_HELPER_TIMEOUT = 30.0


class Logins:
    """The user's logins for the registry that images name as *host*; used by any number of threads.

    Raises RegistryError (LoginsUnreadable) if a file of logins cannot be read, or is none.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._files = list(_files())
        self._lock = threading.Lock()
        self._helped: dict[str, Login | None] = {}
        self._failed = ""

    def of(self, repository: str) -> Login | None:
        """The login to read *repository*: the most specific one of the first file that has any; None if there is none.

        Raises RegistryError (LoginsUnreadable) if that is no login.
        """
        for file, kept in self._files:
            if found := self._in(file, kept, repository):
                return found
        return None

    def advice(self) -> str:
        """What to do where the registry refuses: look at the program that was asked for a login and failed, if any."""
        return self._failed

    def _in(self, file: Path, kept: Mapping[str, Any], repository: str) -> Login | None:
        names = _DOCKER if self._host in _DOCKER else (self._host,)
        helpers = {_plain(name): helper for name, helper in _object(kept, "credHelpers", file).items()}
        if helper := next((helpers[name] for name in names if name in helpers), None):
            return self._ask(str(helper), file)
        auths = _object(kept, "auths", file)
        # What docker keeps for itself has a longer key, as https://index.docker.io/v1/refresh-token.
        entries = {_plain(name): auths[name] for name in sorted(auths, key=len, reverse=True)}
        path = repository.split("/")
        for length in range(len(path), -1, -1):
            for name in names:
                where = "/".join([name, *path[:length]])
                if found := _written(entries.get(where) or {}, where, file):
                    return found
        helper = kept.get("credsStore")
        return self._ask(str(helper), file) if helper else None

    def _ask(self, helper: str, file: Path) -> Login | None:
        """What the program ``docker-credential-HELPER`` keeps for the host; asked once."""
        with self._lock:
            if helper not in self._helped:
                name = _DOCKER_HELPED if self._host in _DOCKER else self._host
                try:
                    self._helped[helper] = _told(helper, name)
                except (OSError, subprocess.SubprocessError) as error:
                    self._helped[helper] = None  # most images need none
                    why = error.strerror if isinstance(error, OSError) else "it failed"
                    self._failed = f"check docker-credential-{helper}, which {file} names: {why}"
            return self._helped[helper]


def _plain(name: str) -> str:
    """The key of a login without what docker's older versions wrote around the host: ``https://HOST/v2/``."""
    stripped = name.removeprefix("http://").removeprefix("https://")
    return stripped.partition("/")[0] if stripped != name else name.rstrip("/")


def _files() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of logins that there are, the first one that counts first. Raises RegistryError."""
    for file, must in _places():
        try:
            kept: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if must:
                raise _unreadable(f"REGISTRY_AUTH_FILE names {file}, which does not exist") from error
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(f"cannot read the credentials in {file}: {error}") from error
        if not isinstance(kept, dict):
            raise _unreadable(f"cannot read the credentials in {file}: not a JSON object")
        yield file, kept


def _places() -> Iterator[tuple[Path, bool]]:
    """Where logins may be, and whether a file must be there."""
    environment = os.environ
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named), True
        return
    runtime = environment.get("XDG_RUNTIME_DIR")
    yield (Path(runtime, "containers") if runtime else _NO_SESSION / str(os.getuid())) / "auth.json", False
    yield Path(environment.get("XDG_CONFIG_HOME") or whoami.home() / ".config") / "containers" / "auth.json", False
    yield Path(environment.get("DOCKER_CONFIG") or whoami.home() / ".docker") / "config.json", False


def _object(kept: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    found = kept.get(key) or {}
    if not isinstance(found, dict):
        raise _unreadable(f"cannot read the credentials in {file}: {key} is not a JSON object")
    return found


def _written(entry: Any, name: str, file: Path) -> Login | None:
    """The login of an *entry*: user and password in base64 or in words, or an identity token; None if it has none."""
    if not isinstance(entry, dict):
        raise _unreadable(f"the credentials for {name} in {file} is not a JSON object")
    user, password, token = entry.get("username") or "", entry.get("password") or "", entry.get("identitytoken") or ""
    if auth := entry.get("auth"):
        user, password = _decoded(auth)
    elif not (user or token):
        return None  # a program keeps it
    if not all(isinstance(one, str) for one in (user, password, token)) or not (user or token):
        raise _unreadable(f"the credentials for {name} in {file} have neither user and password nor an identity token")
    return Login(user, password, token)


def _decoded(auth: Any) -> tuple[str, str]:
    """User and password out of base64; empty if they are not in it."""
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (TypeError, ValueError):  # of what is no text, of base64, of UTF-8
        return "", ""
    return (user, password.rstrip("\0")) if colon else ("", "")  # docker pads it


def _told(helper: str, name: str) -> Login | None:
    """The login that the program ``docker-credential-HELPER`` keeps for *name*, if any.

    Raises OSError, subprocess.SubprocessError if it cannot be asked, or fails.
    """
    try:
        told = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=name.encode(), capture_output=True, check=True,
            timeout=_HELPER_TIMEOUT,
        ).stdout  # fmt: skip
        found = json.loads(told)
        user, secret = str(found["Username"]), str(found["Secret"])
    except subprocess.CalledProcessError as error:
        if b"not found" in error.stdout:  # "credentials not found in native keychain", they all say
            return None
        raise
    except (ValueError, KeyError, TypeError):
        return None
    return Login("", "", secret) if user == _NO_USER else Login(user, secret)


def _unreadable(message: str) -> RegistryError:
    return RegistryError(
        message, code="LoginsUnreadable", hint="log in again (podman login, docker login), or fix the file"
    )
