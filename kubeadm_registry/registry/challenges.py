"""What a registry demands of who asks without a login: challenges, and the tokens that answer them.

Sources: RFC 9110, section 11 (the syntax), https://distribution.github.io/distribution/spec/auth/token/ (tokens), and
https://distribution.github.io/distribution/spec/auth/oauth/ (identity tokens).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry.answers import Answer
from kubeadm_registry.registry.client import TEMPORARY, Login, json_object
from kubeadm_registry.registry.retries import seconds_to_wait

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: A scheme, or a parameter with its value; both begin after a comma or a blank.
_PART = re.compile(rf'[\s,]*({_WORD})(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,"]*))?')
#: What to do about a refusal: of an image that is not there some say the same as of one that is not public.
LOGIN_OR_NAME = "check the name, and log in on this host if that is required (podman login, docker login)"
#: What a header can carry.
_PLAIN = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in: its *scheme* and the names of its *values*, both in small letters."""

    scheme: str
    values: Mapping[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` headers of an answer; what is none of them is left out."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        place, ours = 0, len(found)  # a parameter belongs to a scheme of the same header
        while part := _PART.match(header, place):
            place = part.end()
            if part[2] is None:
                found.append((part[1].lower(), {}))
            elif len(found) > ours:
                value = re.sub(r"\\(.)", r"\1", part[2][1:-1]) if part[2].startswith('"') else part[2]
                found[-1][1].setdefault(part[1].lower(), value)
    return [Challenge(scheme, values) for scheme, values in found]


def basic(login: Login) -> str:
    """The header that tells *login* itself."""
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()


def address(text: str) -> httpx.URL:
    """The URL that *text* is. Raises RegistryError, also for a host whose name is none."""
    try:
        found = httpx.URL(text)
        _ = found.host  # names of other alphabets are decoded here, and Python's decoder raises IndexError as well
    except (httpx.InvalidURL, UnicodeError, IndexError) as error:
        raise RegistryError(
            f"{text[:300]!r} is not a valid address: {error}",
            code="RegistryUnreachable",
            hint="check the registry name",
        ) from error
    return found


def question(challenge: Challenge, repository: str, login: Login | None, *, pushes: bool = False) -> httpx.Request:
    """The request for a token of a ``Bearer`` *challenge*, to read *repository*. Raises RegistryError.

    Who *pushes* asks for that as well: Quay gives nobody a token to read what is not there yet, but one to make it.
    """
    values = challenge.values
    realm = address(values.get("realm", ""))
    reading = f"repository:{repository}:pull"
    scope = values.get("scope") or reading
    if pushes:
        scope = " ".join(f"{one},push" if one == reading else one for one in scope.split())
    service = {"service": values["service"]} if values.get("service") else {}
    if login is not None and login.identity_token:
        form = {
            "scope": scope, **service, "grant_type": "refresh_token", "client_id": "kubeadm-registry",
            "refresh_token": login.identity_token,
        }  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return httpx.Request("POST", realm, headers=headers, content=urlencode(form).encode())
    headers = {"Authorization": basic(login)} if login is not None else {}
    # To mount takes two scopes, and here each is a parameter of its own: not every server splits one.
    return httpx.Request("GET", realm.copy_merge_params({"scope": scope.split(), **service}), headers=headers)


def token(answer: Answer, host: str, advice: str = "") -> str:
    """The header with the token that *answer*, from *host*, gives. Raises RegistryError, with *advice* if any."""
    told: object = None
    if answer.status_code == httpx.codes.OK:
        found = json_object(answer.content, f"the token of {host}")
        told = found.get("token") or found.get("access_token")
    if not (isinstance(told, str) and _PLAIN.fullmatch(told)):
        temporary = answer.status_code in TEMPORARY
        raise RegistryError(
            f"{host} returned no token: status {answer.status_code}", code="RegistryLoginRefused",
            temporary=temporary, wait=seconds_to_wait(answer.headers.get("Retry-After", "")),
            hint="" if temporary else advice or LOGIN_OR_NAME,
        )  # fmt: skip
    return f"Bearer {told}"
