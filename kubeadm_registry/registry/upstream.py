"""Registries on the internet, for reading: with tokens, redirects, and the logins that the user has on this machine.

The sources: https://distribution.github.io/distribution/spec/auth/token/ for tokens,
https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md and
https://docs.docker.com/reference/cli/docker/login/ for logins.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from kubeadm_registry import addresses
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry.client import Api, Login

#: Where images of a name are, if not at the host that the name says; and by which name a login for it is kept.
_ELSEWHERE = {"docker.io": "registry-1.docker.io"}
_LOGIN_NAMES = {"docker.io": ("docker.io", "https://index.docker.io/v1/", "index.docker.io")}
#: Seconds for a program of the user's that keeps logins.
_HELPER_TIMEOUT = 30.0


class Upstream(Api):
    """The registry that images name as *host*, read by any number of threads. *timeout* is seconds of silence.

    TLS, by the authorities that this machine trusts; plain HTTP only with this machine itself, as other clients do it.
    """

    def __init__(self, host: str, login: Login | None = None, *, timeout: float = 30) -> None:
        name = _ELSEWHERE.get(host, host)
        scheme = "http" if _is_this_machine(name) else "https"
        client = httpx.Client(
            verify=ssl.create_default_context(), auth=Tokens(login), timeout=timeout, follow_redirects=True
        )
        super().__init__(host, f"{scheme}://{name}", client)


def _is_this_machine(name: str) -> bool:
    host = re.sub(r":[0-9]+$", "", name)
    address = addresses.ip(host)
    return host == "localhost" or (address is not None and address.is_loopback)


class Tokens(httpx.Auth):
    """Answers a registry's challenge: by a token that it has fetched for that repository, or by the login itself."""

    def __init__(self, login: Login | None) -> None:
        self._login = login
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send *request*, and once more with what the answer asks for."""
        repository = _repository(request.url.path)
        with self._lock:
            known = self._known.get(repository)
        if known:
            request.headers["Authorization"] = known
        answer = yield request
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            return
        kind, values = _challenge(answer.headers.get("WWW-Authenticate", ""))
        if kind == "bearer":
            answer = yield self._ask(values, repository)
            answer.read()
            header = _token(answer)
        elif kind == "basic" and self._login:
            header = _basic(self._login)
        else:
            return
        with self._lock:
            self._known[repository] = header
        request.headers["Authorization"] = header
        yield request

    def _ask(self, values: Mapping[str, str], repository: str) -> httpx.Request:
        realm = httpx.URL(values.get("realm", ""))
        if realm.scheme != "https" and not _is_this_machine(realm.host):
            raise RegistryError(f"a registry sends for its tokens to {str(realm)!r}, which is no https address")
        scope = values.get("scope", f"repository:{repository}:pull")
        wanted = {"scope": scope, **({"service": values["service"]} if "service" in values else {})}
        headers = {"Authorization": _basic(self._login)} if self._login else {}
        return httpx.Request("GET", realm.copy_merge_params(wanted), headers=headers)


def _repository(path: str) -> str:
    found = re.match(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/", path)
    return found[1] if found else ""


def _challenge(header: str) -> tuple[str, dict[str, str]]:
    """The scheme and the values of a challenge (RFC 9110, section 11.3)."""
    kind, _, rest = header.strip().partition(" ")
    return kind.lower(), dict(re.findall(r'([a-z_]+)="([^"]*)"', rest))


def _token(answer: httpx.Response) -> str:
    try:
        told = answer.json() if answer.is_success else {}
        token = told.get("token") or told.get("access_token")
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str):
        raise RegistryError(
            f"{answer.url.host} gives no token: status {answer.status_code}", code="RegistryLoginRefused",
            temporary=answer.status_code in {429, 500, 502, 503, 504},
            hint="log in on this machine (podman login, docker login); its login file is read",
        )  # fmt: skip
    return f"Bearer {token}"


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()


def login_for(host: str) -> Login | None:
    """The user's login for *host* on this machine, as podman, skopeo, crane and docker keep it; None if there is none.

    Raises RegistryError if a file of logins, or the program that it names, cannot be understood.
    """
    names = _LOGIN_NAMES.get(host, (host, f"https://{host}"))
    for file in _login_files():
        try:
            kept: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise RegistryError(f"cannot read the logins in {file}: {error}", code="LoginsUnreadable") from error
        for name in names:
            if found := _kept(kept, name, file):
                return found
    return None


def _login_files() -> Iterator[Path]:
    environment = os.environ
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "containers" / "auth.json"
    yield Path(environment.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _kept(kept: Any, name: str, file: Path) -> Login | None:
    """The login for *name* in a file of logins: written out, or with a program that keeps it."""
    if not isinstance(kept, dict):
        raise RegistryError(f"cannot read the logins in {file}: it is no object", code="LoginsUnreadable")
    entry = (kept.get("auths") or {}).get(name) or {}
    if written := entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(written, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise RegistryError(f"the login for {name} in {file} is no user and password", code="LoginsUnreadable")
        return Login(user, password)
    helper = (kept.get("credHelpers") or {}).get(name) or kept.get("credsStore")
    return _helped(str(helper), name) if helper else None


def _helped(helper: str, name: str) -> Login | None:
    """What ``docker-credential-HELPER`` keeps for *name*. Source: github.com/docker/docker-credential-helpers."""
    try:
        told = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=name.encode(), capture_output=True, check=True,
            timeout=_HELPER_TIMEOUT,
        ).stdout  # fmt: skip
        found = json.loads(told)
        return Login(str(found["Username"]), str(found["Secret"]))
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        return None  # it keeps none for this name, and most images need none
