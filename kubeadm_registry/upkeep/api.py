"""One API server of Kubernetes: a connection, credentials, and patience with a busy server."""

from __future__ import annotations

import http.client
import ssl
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, ProtocolError, TimeoutError

from kubeadm_registry.errors import ConnectionFailed
from kubeadm_registry.printable import printable
from kubeadm_registry.registry.retries import seconds_to_wait
from kubeadm_registry.upkeep.structs import Failure

#: Seconds that one request may be repeated while the server is busy or away.
PATIENCE = 30.0
#: What is over a moment later. 429 is what API priority and fairness answers
#: (https://kubernetes.io/docs/concepts/cluster-administration/flow-control/), 504 what etcd without a quorum leads to.
_BUSY = {429, 500, 502, 503, 504}
#: Seconds until a connection must be there, and that an answer may be silent: kube-apiserver's own limit for a request.
_CONNECT, _SILENCE = 10.0, 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
#: Characters of what another program says.
_LONGEST = 300
_CHECK = "check that the API server runs and that the server in the kubeconfig leads to it, then try again"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered to a request: HTTP *status* and *body*."""

    status: int
    body: bytes

    @property
    def failure(self) -> str:
        """Status and message in one clause, for an answer that is not the one that was hoped for."""
        try:
            message = msgspec.json.decode(self.body, type=Failure).message
        except msgspec.MsgspecError:
            message = ""
        name = http.client.responses.get(self.status, "")
        return ": ".join(filter(None, (f"{self.status} {name}".strip(), clause(message))))


class Api:
    """The API server at *server* (a URL), by one connection of *pool*.

    *authorization* returns the header of that name, or nothing; it is called before each request, so that credentials
    may be renewed. *patience*: seconds that one request may be repeated. *agent* is what the server's audit log calls
    this client. Not shared between threads.
    """

    def __init__(
        self,
        server: str,
        pool: urllib3.PoolManager,
        authorization: Callable[[], str] = lambda: "",
        *,
        patience: float = PATIENCE,
        agent: str = "kubeadm-registry",
    ) -> None:
        self.server = server.rstrip("/")
        self._agent = agent
        self._pool = pool
        self._authorization = authorization
        self._patience = patience

    def get(self, path: str, query: Mapping[str, str] | None = None, *, by: float) -> Answer:
        """What the server answers to a GET of *path*, whatever its status, before the time *by* (time.monotonic).

        Repeats what is busy, or breaks off: a GET may be. Raises ConnectionFailed with the code ClusterUnreachable if
        that lasts, ClusterNotTrusted for a certificate that is not the server's, ClusterUnauthorized for credentials
        that the server does not know.
        """
        url = self.server + path + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        end, pause, begin = min(by, time.monotonic() + self._patience), _FIRST_PAUSE, time.monotonic()
        while True:
            why, wait = "the time for the whole reading is over", 0.0
            if (left := by - time.monotonic()) > 0:
                try:
                    answer = self._once("GET", url, left)
                except HTTPError as error:
                    why = self._unanswered(error)
                else:
                    found = self._answer(answer)
                    if answer.status not in _BUSY:
                        return found
                    why, wait = found.failure, seconds_to_wait(answer.headers.get("Retry-After", ""))
            wait = max(pause, wait)
            if time.monotonic() + wait >= end:
                raise ConnectionFailed(
                    f"no answer from {self.server} to GET {path} within {time.monotonic() - begin:.0f} s: {why}",
                    hint=_CHECK,
                    code="ClusterUnreachable",
                )
            time.sleep(wait)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def send(self, method: str, path: str, body: bytes, *, kind: str = "application/json", seconds: float) -> Answer:
        """What the server answers to one request that changes something, within *seconds*; *kind* is that of *body*.

        It is not repeated: without an answer it may have been carried out. Raises ConnectionFailed as ``get`` does.
        """
        try:
            return self._answer(self._once(method, self.server + path, seconds, body, kind))
        except HTTPError as error:
            raise ConnectionFailed(
                f"no answer from {self.server} to {method} {path} within {seconds:.0f} s: {self._unanswered(error)}",
                hint=_CHECK,
                code="ClusterUnreachable",
            ) from error

    def _answer(self, answer: urllib3.BaseHTTPResponse) -> Answer:
        """*answer* with its body. Raises ConnectionFailed (ClusterUnauthorized)."""
        if answer.status == http.client.UNAUTHORIZED:
            raise ConnectionFailed(
                f"{self.server} does not accept the credentials",
                hint="renew the credentials in the kubeconfig, or use another kubeconfig",
                code="ClusterUnauthorized",
            )
        return Answer(answer.status, answer.data)

    def close(self) -> None:
        """End the connection."""
        self._pool.clear()

    def _once(
        self, method: str, url: str, left: float, body: bytes | None = None, kind: str = ""
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        if kind:
            headers["Content-Type"] = kind
        if authorization := self._authorization():
            headers["Authorization"] = authorization
        # A redirect is not followed: credentials are for this server. No gzip: it costs the API server more than it
        # saves in a network of a cluster.
        return self._pool.request(
            method, url, body=body, headers=headers, retries=False, redirect=False,
            timeout=urllib3.Timeout(connect=min(_CONNECT, left), read=min(_SILENCE, left)),
        )  # fmt: skip

    def _unanswered(self, error: HTTPError) -> str:
        """Why there is no answer, in one clause. Raises ConnectionFailed for what does not pass."""
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise ConnectionFailed(
                    f"the certificate of {self.server} cannot be verified: {cause.verify_message}",
                    hint="check certificate-authority and server in the kubeconfig",
                    code="ClusterNotTrusted",
                ) from error
        for cause in _causes(error):
            if isinstance(cause, OSError) and cause.strerror:
                return cause.strerror.lower()
        if isinstance(error, TimeoutError):
            return "timed out"
        if any(isinstance(cause, http.client.IncompleteRead) for cause in _causes(error)):
            return "the response is incomplete"
        return "the connection was closed" if isinstance(error, ProtocolError) else str(error)


def clause(text: str) -> str:
    """What another program says, as a part of a message: one line, not too long."""
    return textwrap.shorten(printable(text), _LONGEST, placeholder=" ...")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and what led to it; urllib3 has a cause among the arguments as well."""
    while error is not None:
        yield error
        yield from (argument for argument in error.args if isinstance(argument, BaseException))
        error = error.__cause__ or error.__context__
