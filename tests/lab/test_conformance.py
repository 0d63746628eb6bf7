"""The conformance tests of the OCI Distribution Specification: what the registry's program passes by itself, it passes
behind the virtual IP too, where a proxy sends writes to one node and reads to its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kubeadm_registry import paths
from tests.lab.command import wait_until
from tests.lab.host import Host
from tests.lab.programs import program
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

PORT = 5999
UNIT = "frontend-alone.service"
DATA = "/var/lib/frontend-alone"
#: How either program is to serve DATA at PORT, with nothing before it and nothing behind it.
ALONE: Mapping[str, object] = {
    "distribution": {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": DATA}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{PORT}"},
        "validation": {"manifests": {"urls": {"allow": ["^https?://"]}}},
    },
    "zot": {
        "storage": {"rootDirectory": DATA, "gc": False},
        "http": {"address": "127.0.0.1", "port": str(PORT)},
        "log": {"level": "error"},
    },
}
#: What only the program alone passes: here digests are sha256 (templates/haproxy), and of a blob without content there
#: is no upload in parts in S3.
OURS = re.compile(r"sha512|^sha256 blobs/empty/")


def outcomes(argv: Sequence[str], results: Path, **settings: str) -> dict[str, set[str]]:
    """What came of each test of the suite, by name, of which some are there several times: ``passed``, ``skipped`` (a
    registry need not have that) or ``failure``. *argv* starts it where the registry is reached.
    """
    environment = {
        **os.environ, "OCI_VERSION": "1.1", "OCI_RESULTS_DIR": str(results), "SSL_CERT_FILE": settings.pop("ca", ""),
        **{f"OCI_{name.upper()}": value for name, value in settings.items()},
    }  # fmt: skip
    subprocess.run(argv, env=environment, capture_output=True, timeout=300, check=False)
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(results / "junit.xml").getroot().iter("testcase"):  # noqa: S314  it is our own
        name = case.attrib["name"].removeprefix("OCI Conformance Test/")
        found.setdefault(name, set()).add(case.attrib["status"])
    return found


@contextmanager
def alone(host: Host, frontend: str) -> Iterator[str]:
    """Serve an empty registry on *host* with the program that the nodes have; where it is, there."""
    [binary] = host.sh("sh", "-c", f"ls {paths.PROGRAMS}/{frontend}/*/bin/*").stdout.split()
    config = "/run/frontend-alone.json"
    host.sh("sh", "-c", f"cat > {config}", stdin=json.dumps(ALONE[frontend]))
    host.sh("systemd-run", "--quiet", f"--unit={UNIT}", "--setenv=OTEL_TRACES_EXPORTER=none", binary, "serve", config)
    try:
        listens = ("bash", "-c", f"exec 3<> /dev/tcp/127.0.0.1/{PORT}")
        wait_until("the program to listen", lambda: host.sh(*listens, check=False).returncode == 0, seconds=30)
        yield f"127.0.0.1:{PORT}"
    finally:
        host.sh("systemctl", "stop", UNIT, check=False)
        host.sh("rm", "-rf", DATA, config)


@pytest.mark.long  # a minute or two of requests; what they find seldom changes
def test_what_the_program_passes_alone_it_passes_behind_the_virtual_ip(registry: Registry, tmp_path: Path) -> None:
    suite = str(program("conformance"))
    login = registry.login()

    def through(results: str) -> dict[str, set[str]]:
        return outcomes(
            registry.lab.argv(suite), tmp_path / results, registry=f"{registry.vip}:{paths.REGISTRY_PORT}",
            username=login.username, password=login.password, ca=str(registry.ca),
        )  # fmt: skip

    holder = registry.holder()
    with alone(holder, registry.frontend) as address:
        by_itself = outcomes(holder.network_argv(suite), tmp_path / "alone", registry=address, tls="disabled")

    def ours(outcome: Mapping[str, set[str]]) -> set[str]:
        """What fails only here, and is no exception."""
        failed = {name for name, results in outcome.items() if "failure" in results and not OURS.search(name)}
        return {name for name in failed if "failure" not in by_itself.get(name, {"failure"})}

    found = through("through")
    assert sum("passed" in results for results in found.values()) > 200
    failed = ours(found)
    if failed:  # once more: the suite takes a 503 for an answer, where clients ask again while the writer moves
        failed &= ours(through("again"))
    assert failed == set()
