"""The way to the internet: which proxy a request takes, and what is said of one that cannot be used."""

from __future__ import annotations

import ssl

import httpx
import pytest

from kubeadm_registry.errors import ConfigError, RegistryError
from kubeadm_registry.registry import Upstream, web
from tests.unit.fake_web import Asked, Say, serving

PROXY = "http://proxy.lan:3128"


@pytest.mark.parametrize(
    ("environment", "url", "wanted"),
    [
        ({}, "https://quay.io/", ("", "")),
        ({"HTTPS_PROXY": PROXY}, "https://quay.io/", ("HTTPS_PROXY", PROXY)),
        ({"https_proxy": PROXY}, "https://quay.io/", ("https_proxy", PROXY)),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://x"}, "https://quay.io/", ("HTTPS_PROXY", PROXY)),
        ({"HTTPS_PROXY": ""}, "https://quay.io/", ("", "")),
        ({"HTTP_PROXY": PROXY}, "https://quay.io/", ("", "")),
        ({"HTTP_PROXY": PROXY}, "http://quay.io/", ("HTTP_PROXY", PROXY)),
        ({"ALL_PROXY": PROXY}, "https://quay.io/", ("ALL_PROXY", PROXY)),
        ({"all_proxy": PROXY, "HTTPS_PROXY": "http://y"}, "https://quay.io/", ("HTTPS_PROXY", "http://y")),
        ({"HTTPS_PROXY": "proxy.lan:3128"}, "https://quay.io/", ("HTTPS_PROXY", PROXY)),
        ({"HTTPS_PROXY": PROXY}, "https://localhost:5000/", ("", "")),
        ({"HTTPS_PROXY": PROXY}, "https://127.0.0.9:5000/", ("", "")),
        ({"HTTPS_PROXY": PROXY}, "https://[::1]:5000/", ("", "")),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "quay.io"}, "https://quay.io/", ("", "")),
        ({"HTTPS_PROXY": PROXY, "no_proxy": "quay.io"}, "https://quay.io/", ("", "")),
    ],
)
def test_which_proxy_a_request_takes(environment: dict[str, str], url: str, wanted: tuple[str, str]) -> None:
    assert web.proxy_for(httpx.URL(url), environment) == wanted


@pytest.mark.parametrize(
    ("left_out", "host", "straight"),
    [
        ("", "quay.io", False),
        ("*", "quay.io", True),
        ("a.lan, quay.io", "quay.io", True),
        ("QUAY.io", "quay.IO", True),
        ("quay.io", "cdn.quay.io", True),
        ("quay.io", "myquay.io", False),
        (".quay.io", "cdn.quay.io", True),
        (".quay.io", "quay.io", False),
        ("*.quay.io", "cdn.quay.io", True),
        ("quay.io:443", "quay.io", True),
        ("quay.io:5000", "quay.io", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("fd00::1", "fd00::1", True),
        ("fd00::1", "fd00:0::1", True),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("[fd00::1]:80", "fd00::1", False),
        ("fd00::/64", "fd00::1", True),
        ("::1", "quay.io", False),
        ("::1,[::1]:5000,fd00::/8,10.0.0.0/99,:,[,%", "quay.io", False),
    ],
)
def test_what_needs_no_proxy(left_out: str, host: str, straight: bool) -> None:
    assert web.is_straight(left_out, host, 443) is straight


def through(environment: dict[str, str], url: str = "http://quay.io/v2/") -> httpx.Response:
    transport = web.by_proxies(ssl.create_default_context(), environment)
    with httpx.Client(transport=transport, trust_env=False) as client:
        return client.get(url)


def test_a_request_goes_by_the_proxy() -> None:
    def answer(asked: Asked) -> Say:
        return Say(200, asked.path.encode())

    with serving(answer) as proxy:
        assert through({"HTTP_PROXY": proxy.url}).text == "http://quay.io/v2/"
        assert through({"HTTP_PROXY": proxy.host}, f"{proxy.url}/self").text == "/self", "not to this machine itself"


@pytest.mark.parametrize("proxy", ["socks5://me:secret@p:1", "ftp://me:secret@p", "http://me:secret@[", "http://"])
def test_a_proxy_that_cannot_be_used_is_named(proxy: str) -> None:
    with pytest.raises(ConfigError, match="HTTP_PROXY") as caught:
        through({"HTTP_PROXY": proxy})
    assert caught.value.code == "ProxyInvalid"
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_registry_is_asked_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(asked: Asked) -> Say:
        return Say(403 if asked.method == "CONNECT" else 200)

    with serving(refuse) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "::1,fd00::/8")
        with Upstream("quay.io") as registry, pytest.raises(RegistryError, match="403") as caught:
            registry.ping()
    assert [one.path for one in proxy.asked] == ["quay.io:443"]
    assert not caught.value.temporary


def test_a_proxy_that_does_not_answer_is_told_apart_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with Upstream("quay.io") as registry, pytest.raises(RegistryError, match=r"\(by the proxy in HTTPS_PROXY\)"):
        registry.ping()
