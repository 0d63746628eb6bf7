"""A renewed certificate reaches proxies that run: with two real HAProxy processes on one port, and in a run of init."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kubeadm_registry import paths, pki
from kubeadm_registry.agent import served
from kubeadm_registry.components import haproxy as component
from kubeadm_registry.components.served import Served, Trusted
from kubeadm_registry.engine.workflow import run
from kubeadm_registry.errors import Error
from kubeadm_registry.phases.workflows import INIT
from kubeadm_registry.result import Result
from kubeadm_registry.transport import host_python
from kubeadm_registry.transport.host import Host
from tests.unit import real_haproxy
from tests.unit.fake_cluster import ELSEWHERE, FakeCluster, authority
from tests.unit.fakes import FakeTransport
from tests.unit.test_workflow import Recorder

CONFIG = """\
global
  stats socket {folder}/{number}.sock mode 600 level admin expose-fd listeners
defaults
  mode http
  timeout connect 1s
  timeout client 20s
  timeout server 20s
frontend public
  bind 127.0.0.1:{port} ssl crt {folder}/node.pem
  http-request return status 200 content-type text/plain string "ok" if !{{ path_beg /peer }}
  default_backend peer
frontend internal
  bind 127.0.0.1:{peer} ssl crt {folder}/node.pem ca-file {folder}/ca.crt verify required
  http-request return status 200 content-type text/plain lf-string "%[ssl_c_serial,hex]"
backend peer
  http-reuse never
  server peer 127.0.0.1:{peer} ssl crt {folder}/node.pem ca-file {folder}/ca.crt verify required
"""


def issue(lifetime: timedelta = timedelta(days=400)) -> str:
    pair = pki.issue(authority(), "cp-1", ("cp-1", "localhost", "127.0.0.1"), lifetime=lifetime)
    return pair.certificate + pair.key


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@dataclass
class Proxies:
    """Two processes that share a port, and the file with their certificate."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]]

    @property
    def sockets(self) -> list[str]:
        return [str(self.folder / f"{number}.sock") for number in (1, 2)]

    @property
    def pem(self) -> Path:
        return self.folder / "node.pem"

    def say(self, verb: str) -> dict[str, Any]:
        """Run the script as a host runs it."""
        argv = [
            sys.executable,
            "-I",
            "-c",
            host_python.source(served),
            verb,
            str(self.pem),
            str(self.folder / "ca.crt"),
            "127.0.0.1",
            str(self.port),
            "127.0.0.1",
            "1",
            *self.sockets,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def connect(self, ca: str = "") -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cadata=ca or authority().certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        connection.connect()
        return connection


def get(connection: http.client.HTTPSConnection, path: str = "/") -> str:
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.read().decode()


def fingerprint(pem: str) -> str:
    return served.fingerprint(ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----BEGIN PRIVATE")]))


@pytest.fixture
def proxies(tmp_path: Path) -> Iterator[Proxies]:
    program = real_haproxy.program()
    (tmp_path / "node.pem").write_text(issue())
    (tmp_path / "ca.crt").write_text(authority().certificate)
    both = Proxies(tmp_path, free_port(), [])
    try:
        for number in (1, 2):
            text = CONFIG.format(folder=tmp_path, number=number, port=both.port, peer=free_port())
            (tmp_path / f"{number}.cfg").write_text(text)
            argv = [program, "-db", "-f", str(tmp_path / f"{number}.cfg")]
            both.processes.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        end = time.monotonic() + 20
        while None in both.say("show")["proxies"].values():
            assert time.monotonic() < end, "HAProxy does not start"
        yield both
    finally:
        for process in both.processes:
            process.kill()
            process.wait()


def test_a_renewed_certificate_is_served_by_both_and_no_connection_ends(proxies: Proxies) -> None:
    old, new = proxies.pem.read_text(), issue()
    # Enough that the kernel has given some of them to each process.
    before = [proxies.connect() for _ in range(16)]
    proxies.pem.write_text(new)
    shown = proxies.say("show")
    assert shown["file"] == fingerprint(new)
    assert shown["proxies"] == dict.fromkeys(proxies.sockets, fingerprint(old))
    assert shown["handshakes"].keys() == {fingerprint(old)}, "the file alone changes nothing"
    loaded = proxies.say("load")
    assert loaded["trouble"] == []
    assert loaded["proxies"] == dict.fromkeys(proxies.sockets, fingerprint(new))
    assert loaded["handshakes"].keys() == {fingerprint(new)}
    assert proxies.say("show") == loaded
    assert [get(connection) for connection in before] == ["ok"] * 16
    assert all(process.poll() is None for process in proxies.processes)


def test_other_servers_are_shown_the_renewed_one_too(proxies: Proxies) -> None:
    new = issue()
    proxies.pem.write_text(new)
    proxies.say("load")
    serial = ssl._ssl._test_decode_cert(proxies.pem)["serialNumber"]  # type: ignore[attr-defined]
    assert {int(get(proxies.connect(), "/peer"), 16) for _ in range(16)} == {int(serial, 16)}


def test_what_both_processes_trust_is_seen_also_after_a_certificate_was_exchanged(proxies: Proxies) -> None:
    ca, before = proxies.folder / "ca.crt", proxies.say("show")
    assert before["trusted"] == dict.fromkeys(proxies.sockets, before["ca"])
    proxies.pem.write_text(issue())
    assert proxies.say("load")["trouble"] == []
    ca.write_text(authority().certificate + pki.make_ca("registry").certificate)
    shown = proxies.say("show")
    assert (len(shown["ca"]), shown["trouble"]) == (2, [])
    assert shown["trusted"] == before["trusted"], "the file alone changes nothing"
    assert all(process.poll() is None for process in proxies.processes)


def test_a_process_that_is_gone_is_no_trouble_and_the_other_is_served(proxies: Proxies) -> None:
    proxies.processes[0].kill()
    proxies.processes[0].wait()
    new = issue()
    proxies.pem.write_text(new)
    ca = [served.fingerprint(ssl.PEM_cert_to_DER_cert(authority().certificate))]
    assert proxies.say("load") == {
        "file": fingerprint(new),
        "ca": ca,
        "proxies": {proxies.sockets[0]: None, proxies.sockets[1]: fingerprint(new)},
        "trusted": {proxies.sockets[0]: None, proxies.sockets[1]: ca},
        "handshakes": {fingerprint(new): new[: new.index("-----BEGIN PRIVATE")]},
        "agent": None,
        "trouble": [],
    }


def test_what_haproxy_does_not_take_is_told_and_the_old_one_stays(proxies: Proxies) -> None:
    old, new = proxies.pem.read_text(), issue()
    key = old[old.index("-----BEGIN PRIVATE") :]
    for content in (new[: new.index("-----BEGIN PRIVATE")] + key, new[: new.index("-----BEGIN PRIVATE")]):
        proxies.pem.write_text(content)
        said = proxies.say("load")
        assert len(said["trouble"]) == 2
        assert said["proxies"] == dict.fromkeys(proxies.sockets, fingerprint(old))
        assert said["handshakes"].keys() == {fingerprint(old)}
    proxies.pem.write_text(new)
    assert proxies.say("load")["trouble"] == [], "nothing of the failed one is in the way"


def test_no_file_and_no_process(tmp_path: Path) -> None:
    none = Proxies(tmp_path, free_port(), [])
    said = none.say("show")
    assert said.pop("trouble") == [f"{none.pem}: [Errno 2] No such file or directory: '{none.pem}'"]
    nobody = dict.fromkeys(none.sockets)
    assert said == {"file": None, "ca": [], "proxies": nobody, "trusted": nobody, "handshakes": {}, "agent": None}


# ---- in a run -----------------------------------------------------------------------------------------------------


def soon(fake: FakeCluster, name: str) -> str:
    """A certificate of that server which ends within the time of renewal."""
    cluster = fake.cluster
    host = next(one for one in cluster.hosts if one.name == name)
    lifetime = pki.RENEW_BEFORE - timedelta(days=1)
    pair = pki.issue(authority(), name, component.names(cluster, host), lifetime=lifetime)
    return pair.certificate + pair.key


def test_init_renews_a_certificate_and_loads_it_without_restart_or_reload(installed: FakeCluster) -> None:
    server = installed.servers["cp-2"]
    server.put(paths.NODE_PEM, soon(installed, "cp-2"), 0o640, f"root:{component.USER}")
    for unit in paths.HAPROXY_UNITS:
        installed.served["cp-2", unit, server.unit(unit).starts] = "an earlier one"
        before = (server.unit(unit).starts, server.unit(unit).reloads)
    server.acts.clear()
    run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    loads = [f"load the certificate into {unit}" for unit in paths.HAPROXY_UNITS]
    assert [act for act in server.acts if act.startswith("load")] == loads
    assert not [act for act in server.acts if "haproxy@" in act and act not in loads]
    assert all((server.unit(unit).starts, server.unit(unit).reloads) == before for unit in paths.HAPROXY_UNITS)
    assert run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE) == []


def test_a_run_that_died_before_it_was_loaded_is_made_up(installed: FakeCluster) -> None:
    server = installed.servers["cp-3"]
    for unit in paths.HAPROXY_UNITS[:1]:
        installed.served["cp-3", unit, server.unit(unit).starts] = "an earlier one"
    (action,) = run(INIT, installed.cluster, Recorder(), skip=ELSEWHERE)
    assert (action.host, action.phase) == ("cp-3", "proxy")
    assert action.diff == f"cp-3 serves an older certificate than {paths.NODE_PEM} ({paths.HAPROXY_SOCKETS[0]})"


SCRIPT = host_python.command(served)


SAID: dict[str, object] = {
    "file": "A", "proxies": {"1": "A", "2": "A"}, "handshakes": {"A": ""}, "trouble": [],
    "ca": ["C"], "trusted": {"1": ["C"], "2": ["C"]}, "agent": None,
}  # fmt: skip


def shows(server: FakeTransport, **said: object) -> Host:
    """A server whose script says this."""
    whole = SAID | said
    server.answer(*SCRIPT, with_=json.dumps(whole))
    server.put(paths.NODE_PEM, b"a certificate")
    return server.host()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, None),
        ({"proxies": {"1": None, "2": None}, "handshakes": {}}, None),
        ({"handshakes": {"A": "", "B": ""}}, "presents a different certificate on port 5000"),
        ({"proxies": {"1": "A", "2": "none: Not found"}}, "cp-1 serves an older certificate"),
        ({"trouble": ["127.0.0.1:5000: refused"]}, "cannot determine what is served: 127.0.0.1:5000: refused"),
    ],
)
def test_what_is_served_is_judged(server: FakeTransport, said: dict[str, object], words: str | None) -> None:
    difference = Served().diff(shows(server, **said))
    assert difference is None if words is None else words in (difference or "")


def test_what_is_not_taken_up_is_an_error_with_a_remedy(server: FakeTransport) -> None:
    host = shows(server, trouble=["1.sock: it does not match"], proxies={"1": "B", "2": "B"})
    with pytest.raises(Error, match=r"did not load .*node\.pem: 1\.sock: it does not match") as caught:
        Served().apply(host)
    assert caught.value.code == "CertificateNotLoaded"
    assert "systemctl reload" in caught.value.hint


def test_a_process_of_before_a_reload_may_be_seen_for_a_moment(server: FakeTransport) -> None:
    seen = iter([{"B": ""}, {"A": "", "B": ""}, {"A": ""}])
    whole = SAID
    server.answer(*SCRIPT, with_=lambda *_: json.dumps(whole | {"handshakes": next(seen)}))
    server.put(paths.NODE_PEM, b"a certificate")
    Served().apply(server.host())
    assert next(seen, None) is None


def test_a_host_without_python_is_told(server: FakeTransport) -> None:
    words = b"there is no Python 3.9 or newer"
    server.answer(*SCRIPT, with_=Result(("sh",), 127, b"", words))
    assert Served().diff(server.host()) is None, "nothing is served before there is a certificate, as in a dry-run"
    server.put(paths.NODE_PEM, b"a certificate")
    with pytest.raises(Error, match=f"cp-1: cannot determine which certificate is served: {words.decode()}"):
        Served().diff(server.host())


@pytest.mark.parametrize("bundled", ["", "old", "bare", "strange"], ids=str)
def test_a_python_is_found(tmp_path: Path, bundled: str) -> None:
    """The host's, or that of the bundle where it is too *old*, lacks its library, or is for *strange* machines."""
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin" / "python3"
    begin = {
        "old": "sys.version_info = (3, 8)",
        "bare": "sys.modules.update(json=None)",
    }.get(bundled, "")
    text = f"#!/bin/sh\nshift 3\nexec '{sys.executable}' -c 'import sys; {begin}; exec(sys.argv[1])' \"$@\"\n"
    old.write_bytes(b"\x7fELF" if bundled == "strange" else text.encode())
    old.chmod(0o755)
    where = tmp_path / "python" / "3.13" / "bin"
    where.mkdir(parents=True)
    if bundled:
        (where / "python3").symlink_to(sys.executable)
    else:
        old.unlink()
        old.symlink_to(sys.executable)
    argv = ["sh", "-c", host_python.RUN, "served", str(tmp_path), "import sys; print(sys.argv[1:])", "show", "a b"]
    env = {"PATH": f"{tmp_path / 'bin'}"}
    done = subprocess.run(["/bin/sh", *argv[1:]], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("['show', 'a b']\n", 0), done.stderr
    for path in (old, where / "python3"):
        path.unlink(missing_ok=True)
    done = subprocess.run(["/bin/sh", *argv[1:]], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.returncode) == ("there is no Python 3.9 or newer\n", 127)


def test_proxies_that_trust_another_ca_are_reloaded_one_after_the_other(server: FakeTransport) -> None:
    both = dict(zip(paths.HAPROXY_SOCKETS, paths.HAPROXY_UNITS, strict=True))
    trusted: dict[str, list[str] | None] = {path: ["old"] for path in both}
    silent = iter((True, False, True, False))  # the new process does not answer at once

    def say(*_: object) -> str:
        reloaded = [path for path, unit in both.items() if f"reload {unit}" in server.acts]
        now = {path: ["C"] if path in reloaded else has for path, has in trusted.items()}
        if reloaded and next(silent, False):
            now[reloaded[-1]] = None
        return json.dumps(SAID | {"trusted": now})

    server.answer(*SCRIPT, with_=say)
    server.put(paths.CA, b"a CA")
    for unit in paths.HAPROXY_UNITS:
        server.answer("systemctl", "reload", "--", unit, act=f"reload {unit}")
    host = server.host()
    assert (
        Trusted().diff(host)
        == f"{', '.join(paths.HAPROXY_UNITS)}: reloads, because it trusts other CAs than {paths.CA}"
    )
    Trusted().apply(host)
    assert server.acts == [f"reload {unit}" for unit in paths.HAPROXY_UNITS]
    assert Trusted().diff(host) is None
