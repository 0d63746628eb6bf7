"""Registries on the internet: with tokens, redirects, and the logins that the user has on this machine.

A login is for the registry that the user logged in to, and for the server of tokens that this very registry names.
Whoever it redirects to gets neither; and nothing that is asked by https goes on by http.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import closing

import httpx

from kubeadm_registry import addresses
from kubeadm_registry.errors import RegistryError
from kubeadm_registry.registry import challenges
from kubeadm_registry.registry.answers import Answer, beginning, whole
from kubeadm_registry.registry.client import REPOSITORY, Api, Login
from kubeadm_registry.registry.web import by_proxies, trusting

#: Where images of a name are, if not at the host that the name says.
_ELSEWHERE = {"docker.io": "registry-1.docker.io"}
#: How often a registry may send elsewhere; most do it once, for blobs.
_MAX_REDIRECTS = 5
#: The most bytes of an answer with a token.
_MAX_TOKEN = 2**18
#: Seconds for which a registry that never answered may be silent: then it is not there, or there is no network.
_FIRST = 5.0
#: Seconds to connect; a registry is a few hundredths away, and a firewall may drop all without a word.
_CONNECT = 10.0
#: Seconds to find out what a registry on this machine speaks.
_PROBE = 5.0


class Upstream(Api):
    """The registry that images name as *host*, read by any number of threads. *timeout* is seconds of silence.

    *login* gives the login for a repository, by which is also written to it if this one *pushes*; *advice* says why it
    may lack one. TLS, by the authorities that this machine trusts; plain HTTP only with this machine itself, as other
    clients do it.
    """

    def __init__(
        self, host: str, login: Callable[[str], Login | None] = lambda _: None, *, pushes: bool = False,
        timeout: float = 30, advice: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        name = _ELSEWHERE.get(host, host)
        challenges.address(f"https://{name}")
        client = httpx.Client(
            transport=by_proxies(trusting()), trust_env=False,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT)),
        )  # fmt: skip
        super().__init__(host, f"{_scheme(client, name)}://{name}", client)
        self._login = login
        self._advice = advice
        self._pushes = pushes
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str], str] = {}
        self._answered = False
        self._begun: float | None = None

    def _exchange(self, request: httpx.Request) -> httpx.Response:
        repository = request.extensions.get(REPOSITORY) or _repository(request.url.path)
        self._begun = time.monotonic() if self._begun is None else self._begun
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._as_allowed(request, repository)
            self._answered = True
            if answer.next_request is None:
                return answer
            if not _can_be_repeated(request):
                answer.close()
                raise RegistryError(f"{self.name} redirects an upload", code="RedirectRefused")
            with closing(answer):
                beginning(answer, self.name)  # to the end, as a rule: then the connection serves the next request
            request = self._onward(answer)
        raise RegistryError(f"{self.name} redirects more than {_MAX_REDIRECTS} times", code="RedirectRefused")

    def _onward(self, answer: httpx.Response) -> httpx.Request:
        """The request to where *answer* redirects. Raises RegistryError if that is not safe.

        httpx has made it, and taken the login out if it leads to another place.
        """
        request = answer.next_request
        assert request is not None  # noqa: S101  who calls has looked
        if not self._is_safe(request.url):
            raise RegistryError(
                f"{self.name} redirects to {_origin(request.url)}, which is not an https address",
                code="RedirectRefused",
                hint="use another registry; without https the image could be replaced in transit",
            )  # fmt: skip
        return request

    def _as_allowed(self, request: httpx.Request, repository: str) -> httpx.Response:
        """The answer to *request*, sent with a token; a second time with what the first answer asked for."""
        place = (_origin(request.url), repository)
        with self._lock:
            known = self._tokens.get(place)
        if known:
            request.headers["Authorization"] = known
        answer = self._sent(request)
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            return answer
        try:
            # Who is only redirected to may be anybody: what it asks for is answered without the user's login.
            login = self._login(repository) if place[0] == _origin(self._base) else None
            header = self._answer_to(answer, repository, login)
            if header is None:
                return answer
            beginning(answer, self.name)
        except BaseException:
            answer.close()
            raise
        answer.close()
        with self._lock:
            self._tokens[place] = header
        if not _can_be_repeated(request):
            # A token has ended, or was for reading alone: the upload goes on with the new one where this one stopped.
            raise RegistryError(f"{self.name} wants another token", temporary=True)
        request.headers["Authorization"] = header
        return self._sent(request)

    def _sent(self, request: httpx.Request) -> httpx.Response:
        """The answer to *request* itself. Raises httpx.HTTPError, and RegistryError for a host that cannot be."""
        try:
            return self._client.send(request, stream=True)
        except httpx.InvalidURL as error:  # a relative Location that begins with a digest reads as one of a scheme
            raise RegistryError(
                f"{self.name} redirects to an address that is not valid", code="RedirectRefused"
            ) from error  # fmt: skip
        except (UnicodeError, IndexError) as error:  # what Python says of names in no alphabet, as xn--a, and of a..b
            is_own = _origin(request.url) == _origin(self._base)
            raise RegistryError(
                f"{self.name} {'is not a valid host name' if is_own else 'redirects to a host name that is not valid'}",
                code="RegistryUnreachable", hint="check the registry name",
            ) from error  # fmt: skip

    def _answer_to(self, answer: httpx.Response, repository: str, login: Login | None) -> str | None:
        """The header that answers a challenge; None if there is none that can be answered. Raises RegistryError."""
        found = challenges.challenges(answer.headers.get_list("WWW-Authenticate"))
        for one in found:
            if one.scheme == "bearer":
                pushes = self._pushes and login is not None
                return self._token(challenges.question(one, repository, login, pushes=pushes))
        if login is not None and login.user and any(one.scheme == "basic" for one in found):
            return challenges.basic(login)
        return None

    def _token(self, request: httpx.Request) -> str:
        if not self._is_safe(request.url):
            raise RegistryError(
                f"the token server of {self.name} is {_origin(request.url)!r}, which is not an https address",
                code="RedirectRefused",
            )
        with self._unanswered(request):
            for _ in range(_MAX_REDIRECTS + 1):
                with closing(self._sent(request)) as answer:
                    if answer.next_request is None or request.method != "GET":
                        found = whole(answer, _MAX_TOKEN, f"the token of {request.url.host}")
                        return challenges.token(found, request.url.host, self._advice())
                request = self._onward(answer)
        raise RegistryError(
            f"the token server of {self.name} redirects more than {_MAX_REDIRECTS} times", code="RedirectRefused"
        )

    def _is_safe(self, url: httpx.URL) -> bool:
        """Whether this registry may send to *url*: by https; by http if itself is asked so, and to this machine."""
        if not url.host:
            return False
        return url.scheme == "https" or (url.scheme == self._base.scheme == "http" and _is_loopback(url.host))

    def _may_pass(self, error: Exception) -> bool:
        """Whether waiting may mend *error*: hardly if this registry never answered."""
        unreached = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self._answered
        if unreached and self._begun is not None and time.monotonic() - self._begun >= _FIRST:
            return False
        return super()._may_pass(error)

    def expect(self, answer: Answer, status: int, what: str) -> Answer:
        """The same; and who does not begin an upload, as there is no such repository, will not after a while.

        Of ours it is a zot that does not reach its storage, or another writer began the upload.
        """
        try:
            return super().expect(answer, status, what)
        except RegistryError as error:
            if answer.method == "POST" and answer.status_code == httpx.codes.NOT_FOUND:
                error.temporary = False
                error.hint = "create the repository, or its project, in that registry first, or check the path"
            raise

    def _hint(self, status: int) -> str:
        """What to do about an answer of that *status*."""
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return self._advice() or challenges.LOGIN_OR_NAME
        return self._advice() if status == httpx.codes.TOO_MANY_REQUESTS else ""


def _scheme(client: httpx.Client, name: str) -> str:
    """How to ask the registry *name*: by https, unless it is on this machine and does not speak it.

    Whether it does is asked by plain HTTP, which a TLS server refuses at once, with an error or with 400.
    """
    if not _is_loopback(re.sub(r":[0-9]+$", "", name)):
        return "https"
    try:
        with client.stream("GET", f"http://{name}/v2/", timeout=_PROBE) as answer:
            found: Answer = beginning(answer, name)
    except (httpx.HTTPError, RegistryError):
        return "https"
    elsewhere = found.headers.get("Location", "")
    return "https" if found.status_code == httpx.codes.BAD_REQUEST or elsewhere.startswith("https:") else "http"


def _is_loopback(host: str) -> bool:
    address = addresses.ip(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _origin(url: httpx.URL) -> str:
    """Scheme, host and port, the default one left out: what one login is for (RFC 6454)."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _can_be_repeated(request: httpx.Request) -> bool:
    """Whether the content of *request* is still there once it was sent: a stream is used up."""
    return isinstance(request.stream, httpx.ByteStream)


def _repository(path: str) -> str:
    found = re.match(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/", path)
    return found[1] if found else ""
