"""The way to the internet: by the proxies that the environment names, or straight.

The rules are those of golang.org/x/net/http/httpproxy, as other clients of registries have them: the upper-case
variable before the lower-case one, never a proxy to this machine itself, and ``NO_PROXY`` a list of ``*``, names (which
cover their sub-domains), addresses and networks, each with a port or without. ``ALL_PROXY``, which curl knows, counts
where there is none for the scheme.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Mapping

import httpx

from kubeadm_registry import addresses
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.printable import reason

#: A name or an address, as far as a proxy's URL shows it.
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Where Linux distributions keep the authorities that they trust, all in one file. Source: Go, crypto/x509,
#: root_linux.go.
_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def client() -> httpx.Client:
    """A client for downloads, by the proxies of the environment."""
    return httpx.Client(transport=by_proxies(trusting()), trust_env=False)


def trusting() -> ssl.SSLContext:
    """TLS by the authorities that this machine trusts, or by those that ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` name.

    The program in one file has Debian's OpenSSL, which looks where Debian has them, and nowhere else.
    """
    paths = ssl.get_default_verify_paths()
    named = os.environ.get(paths.openssl_cafile_env) or os.environ.get(paths.openssl_capath_env)
    known = named or paths.cafile or paths.capath
    context = ssl.create_default_context(cafile=None if known else next(filter(os.path.isfile, _AUTHORITIES), None))
    # From Python 3.13 on certificates must have all that RFC 5280 asks for, which those of sites and proxies do not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def by_proxies(tls: ssl.SSLContext, environment: Mapping[str, str] = os.environ) -> httpx.BaseTransport:
    """A transport that sends each request by the proxy that *environment* names for it, or straight.

    A request for which a proxy is named that cannot be used raises ConfigError (ProxyInvalid).
    """
    return _ByProxies(tls, environment)


class _ByProxies(httpx.BaseTransport):
    def __init__(self, tls: ssl.SSLContext, environment: Mapping[str, str]) -> None:
        self._tls = tls
        self._environment = environment
        self._lock = threading.Lock()
        self._ways: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer to *request*. Raises httpx.TransportError, which names the variable of a proxy."""
        variable, proxy = proxy_for(request.url, self._environment)
        with self._lock:
            if proxy not in self._ways:
                self._ways[proxy] = self._way(variable, proxy)
            way = self._ways[proxy]
        try:
            return way.handle_request(request)
        except httpx.TransportError as error:
            if not variable:
                raise
            raise type(error)(f"{reason(error)} (by the proxy in {variable})") from error

    def _way(self, variable: str, proxy: str) -> httpx.HTTPTransport:
        try:
            if proxy and not _HOST.fullmatch(httpx.URL(proxy).host):
                raise ValueError("no host")
            return httpx.HTTPTransport(verify=self._tls, trust_env=False, proxy=proxy or None)
        except ImportError as error:  # httpx can do it only with a further package
            raise ConfigError(
                f"{variable} names a SOCKS proxy, which requires the Python package socksio", code="ProxyInvalid",
                hint=f"install it (pip install socksio), or set {variable} to an HTTP proxy",
            ) from error  # fmt: skip
        except (httpx.InvalidURL, ValueError, IndexError) as error:  # its text may hold a password
            raise ConfigError(
                f"{variable} is not a valid proxy URL", code="ProxyInvalid", hint="write it as http://HOST:PORT"
            ) from error

    def close(self) -> None:
        """End all connections."""
        for way in self._ways.values():
            way.close()


def proxy_for(url: httpx.URL, environment: Mapping[str, str]) -> tuple[str, str]:
    """The variable that names the proxy for *url*, and its URL; empty if the request goes straight."""
    for name in (f"{url.scheme}_proxy", "all_proxy"):
        for variable in (name.upper(), name):
            if told := environment.get(variable, "").strip():
                left_out = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
                port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
                if is_straight(left_out, url.host, port):
                    return "", ""
                return variable, told if "://" in told else f"http://{told}"
    return "", ""


def is_straight(left_out: str, host: str, port: int) -> bool:
    """Whether requests to *host* need no proxy: it is this machine, or the list *left_out* (NO_PROXY) has it."""
    address = addresses.ip(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_covers(entry.strip().lower(), host.lower(), port) for entry in left_out.split(","))


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if network := _network(entry):
        address = addresses.ip(host)
        return address is not None and address in network
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal():
        if int(number) != port:
            return False
        entry = name
    if network := _network(re.sub(r"^\[(.*)\]$", r"\1", entry)):
        address = addresses.ip(host)
        return address is not None and address in network
    domain = entry.removeprefix("*").lstrip(".")
    # ".example.com" is for names below it, "example.com" for that name as well.
    return bool(domain) and (host.endswith(f".{domain}") or (host == domain and entry == domain))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
