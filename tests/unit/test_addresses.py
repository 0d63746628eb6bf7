"""The one place that knows how an address looks where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeadm_registry import addresses

ANY = st.ip_addresses().map(str)


@pytest.mark.parametrize(
    ("address", "endpoint", "url", "prefix", "family"),
    [
        ("10.0.0.1", "10.0.0.1:80", "https://10.0.0.1:80/v2/", "10.0.0.1/32", "ip"),
        ("fd00::1", "[fd00::1]:80", "https://[fd00::1]:80/v2/", "fd00::1/128", "ip6"),
        ("registry.lan", "registry.lan:80", "https://registry.lan:80/v2/", "registry.lan/32", "ip"),
    ],
)
def test_how_an_address_is_written(address: str, endpoint: str, url: str, prefix: str, family: str) -> None:
    assert addresses.endpoint(address, 80) == endpoint
    assert addresses.url(address, 80, "/v2/") == url
    assert addresses.prefix(address) == prefix
    assert addresses.family(address) == family


def test_another_scheme() -> None:
    assert addresses.url("::1", 1, scheme="http") == "http://[::1]:1"


@pytest.mark.parametrize("text", ["registry.lan", "10.0.0", "10.0.0.1/24", "[::1]", "", "fd00::1 "])
def test_what_is_no_address(text: str) -> None:
    assert addresses.ip(text) is None
    assert not addresses.is_ipv6(text)


@given(ANY, st.integers(1, 65535))
def test_an_endpoint_is_taken_apart_at_its_last_colon(address: str, port: int) -> None:
    host, _, rest = addresses.endpoint(address, port).rpartition(":")
    assert (host.strip("[]"), rest) == (address, str(port))
    assert ("[" in host) == (":" in address)
