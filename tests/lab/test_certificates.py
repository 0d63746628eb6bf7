"""Certificates that end soon or have ended: init renews them before readers; status shows what is served."""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from kubeadm_registry import paths, pki
from kubeadm_registry.oci import canary
from kubeadm_registry.secrets import PATH, Secrets
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.reading import Object, reading
from tests.lab.registry import Registry
from tests.lab.test_helper import Operator, operator  # noqa: F401  the fixture
from tests.lab.web import CANARY

pytest_plugins = ["tests.lab.registry"]
pytestmark = pytest.mark.long  # two minutes, of which one installs

KNOWN = Object(canary.REPOSITORY, canary.MANIFEST.digest, canary.LAYER.digest)
#: How many connections show both processes that share the port.
CONNECTIONS = 12


def give(host: Host, lifetime: timedelta) -> x509.Certificate:
    """Have the server serve a certificate of that lifetime, with the names of the one that it has."""
    secrets = Secrets.from_json(host.sh("cat", PATH).stdout.encode())
    before = x509.load_pem_x509_certificate(host.sh("cat", paths.NODE_PEM).stdout.encode())
    names = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = [str(one.value) for one in names]
    pair = pki.issue(pki.Pair(secrets.ca_certificate, secrets.ca_key), host.name, wanted, lifetime=lifetime)
    # Owner and mode stay.
    host.sh("sh", "-c", 'cat > "$1"', "-", paths.NODE_PEM, stdin=pair.certificate + pair.key)
    host.sh("systemctl", "reload", *paths.HAPROXY_UNITS)
    return x509.load_pem_x509_certificate(pair.certificate.encode())


def connect(registry: Registry, address: str) -> http.client.HTTPSConnection:
    """A connection to a server from the lab's network, which trusts our authority."""
    connection = http.client.HTTPSConnection(address, paths.REGISTRY_PORT, context=registry.tls(), timeout=10)
    with registry.lab.network():
        connection.connect()
    return connection


def get(connection: http.client.HTTPSConnection) -> int:
    # Distribution hides a manifest of OCI's kind from who does not ask for it.
    connection.request("GET", CANARY, headers={"Accept": canary.MANIFEST.media_type})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def served(registry: Registry, address: str) -> set[int]:
    """The serial numbers that several handshakes show, whatever they are worth."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = set()
    for _ in range(CONNECTIONS):
        connection = http.client.HTTPSConnection(address, paths.REGISTRY_PORT, context=context, timeout=10)
        with registry.lab.network():
            connection.connect()
        der = connection.sock.getpeercert(binary_form=True) or b""
        found.add(x509.load_der_x509_certificate(der).serial_number)
        connection.close()
    return found


def reloaded(registry: Registry, serials: dict[str, int]) -> bool:
    """Whether each server's processes serve those certificates, after a reload."""
    return all(served(registry, host.address) == {serials[name]} for name, host in registry.servers.items())


def processes(registry: Registry) -> set[str]:
    """Every process of HAProxy, by server and number."""
    script = 'for one in /proc/[0-9]*; do case "$(readlink "$one/exe")" in */haproxy) echo "${one#/proc/}";; esac; done'
    return {
        f"{name} {number}"
        for name, host in registry.servers.items()
        for number in host.sh("sh", "-c", script).stdout.split()
    }


def certificates(registry: Registry) -> tuple[dict[str, str], dict[str, int], int]:
    """The condition of the certificates, the days left by server, and the exit code of status."""
    result = registry.cli("status", "-o", "json", check=False)
    found = json.loads(result.stdout)
    condition = next(one for one in found["conditions"] if one["type"] == "CertificatesValid")
    return condition, {node["name"]: node["certificateDays"] for node in found["nodes"]}, result.returncode


@contextmanager
def renewed(registry: Registry) -> Iterator[dict[str, int]]:
    """Certificates that end soon, which the ``with`` renews; the days that status says of each before.

    No read fails meanwhile, no client loses a connection that it keeps, and no unit is started again.
    """
    serials = {name: give(host, timedelta(minutes=30)).serial_number for name, host in registry.servers.items()}
    wait_until("the short-lived certificates are served", lambda: reloaded(registry, serials), seconds=30)
    condition, days, _ = certificates(registry)
    assert condition["reason"] == "EndsSoon", condition
    assert set(days.values()) == {0}
    registry.wait_whole()
    before, invocations = time.time(), registry.invocations()
    # Enough for both processes of each server.
    kept = [connect(registry, host.address) for host in registry.servers.values() for _ in range(CONNECTIONS)]
    assert {get(connection) for connection in kept} == {200}
    with reading(registry, KNOWN) as result:
        yield days
    sys.stdout.write(f"  {registry.frontend}: {result}\n")
    assert not result.failed, registry.journals(before)
    assert {get(connection) for connection in kept} == {200}
    for name, host in registry.servers.items():
        file = x509.load_pem_x509_certificate(host.sh("cat", paths.NODE_PEM).stdout.encode())
        assert file.serial_number != serials[name]
        assert served(registry, host.address) == {file.serial_number}
    assert registry.invocations() == invocations


# No read may fail beside three reloads, so it needs a machine that has nothing else to do.
def test_a_certificate_that_ends_soon_is_renewed_without_a_failed_read(registry: Registry) -> None:
    with renewed(registry):
        running = processes(registry)
        assert len(running) >= 4 * len(registry.servers), "a master and a worker each"
        said = registry.cli("init").stdout
        sys.stdout.write(f"\n{said}\n")
    assert processes(registry) <= running, "no process is new"
    registry.wait_copied()
    condition, days, code = certificates(registry)
    assert (condition["reason"], code) == ("Valid", 0), condition
    assert min(days.values()) > pki.LEAF_LIFETIME.days - 2
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


#: Has certificates renewed as the operator does: cluster file, directory of the Secret, what status says.
RENEW = """
import json, pathlib, sys
from kubeadm_registry import config
from kubeadm_registry.operator import renewing, way
path, folder, status = sys.argv[1:]
members = way.read(pathlib.Path(folder)).members(config.load(pathlib.Path(path)))
done = renewing.renew(json.loads(status), members, lambda: None)
print(json.dumps({"done": [[name, verdict.reason, verdict.message] for name, verdict in done]}))
"""


def test_the_operator_has_nodes_renew_what_ends_soon(registry: Registry, operator: Operator) -> None:  # noqa: F811
    """By questions to their helpers, one node after the other, before readers; `init` has nothing to add."""
    with renewed(registry) as days:
        status = json.dumps({"nodes": [{"name": name, "certificateDays": left} for name, left in days.items()]})
        done = operator.python(RENEW, str(operator.folder), status)["done"]
        sys.stdout.write(f"\n{done}\n")
    assert [(name, reason) for name, reason, _ in done] == [(name, "Renewed") for name in registry.servers]
    assert operator.python(RENEW, str(operator.folder), status)["done"] == [], "a node renews its certificate once"
    condition, days, _ = certificates(registry)
    assert condition["reason"] == "Valid", condition
    assert min(days.values()) > pki.LEAF_LIFETIME.days - 2
    assert registry.cli("init").stdout.splitlines()[-1] == "nothing to do"


def test_certificates_that_have_ended_are_renewed_by_init(registry: Registry) -> None:
    """Clients refuse them, and so do the servers among each other; status says so, and one run makes it good."""
    given = {name: give(host, timedelta(seconds=20)) for name, host in registry.servers.items()}
    serials = {name: one.serial_number for name, one in given.items()}
    wait_until("the short-lived certificates are served", lambda: reloaded(registry, serials), seconds=18)
    last = max(one.not_valid_after_utc for one in given.values())
    wait_until("they have ended", lambda: datetime.now(UTC) > last, seconds=30)
    condition, _, code = certificates(registry)
    assert (condition["reason"], code) == ("Expired", 5), condition
    try:
        connect(registry, registry.vip)
    except ssl.SSLCertVerificationError as error:
        assert "expired" in str(error)
    else:
        raise AssertionError("a client takes an expired certificate")
    registry.cli("init")
    connection = connect(registry, registry.vip)
    assert get(connection) == 200
    registry.wait_copied()
    condition, _, code = certificates(registry)
    assert (condition["reason"], code) == ("Valid", 0), condition
