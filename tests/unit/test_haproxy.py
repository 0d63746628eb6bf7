"""The only way to the registry, as a real HAProxy takes its configuration: who gets in, with what, and for how long."""

from __future__ import annotations

import itertools
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from kubeadm_registry import paths
from kubeadm_registry.components import haproxy
from kubeadm_registry.secrets import basic
from tests.unit.real_haproxy import PUSH, Answer, Node, nodes

GOLDEN = Path(__file__).parents[1] / "golden"
ZOT = (GOLDEN / "ipv4-zot" / "cluster.yaml").read_text()
DISTRIBUTION = (GOLDEN / "ipv4-distribution" / "cluster.yaml").read_text()
EPOCH = 4
READ = "/v2/a/manifests/v1"


@pytest.fixture(scope="module")
def zot() -> Iterator[Node]:
    """The one writer's server: its gate is open, and its agent knows that the others are not there."""
    with nodes(ZOT, "cp-1") as [node]:
        node.open_gate(EPOCH)
        node.tell("set server reads/cp-2 state maint", "set server reads/cp-3 state maint")
        yield node


@pytest.fixture(scope="module")
def standby() -> Iterator[Node]:
    """A server whose gate is shut, as it is on disk, and which knows no writer."""
    with nodes(ZOT, "cp-1") as [node]:
        yield node


@pytest.fixture(scope="module")
def distribution() -> Iterator[Node]:
    """A server with Distribution, where all may write."""
    with nodes(DISTRIBUTION, "cp-1") as [node]:
        yield node


@pytest.fixture(scope="module")
def every() -> Iterator[Node]:
    """A server that is the mirror of every registry."""
    with nodes(with_mirrors(DISTRIBUTION, "'*', quay.io"), "cp-1") as [node]:
        yield node


def with_mirrors(text: str, names: str) -> str:
    """A cluster file with other mirrors."""
    assert "mirrors:" not in text
    return f"{text.rstrip()}\n  mirrors: [{names}]\n"


def came(node: Node) -> list[str]:
    """What has come to the frontend since this was asked last."""
    arrived, node.arrived[:] = list(node.arrived), []
    return arrived


# ---- the mirror of every registry: the query tells which one -------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "arrives"),
    [
        ("library/busybox/manifests/1?ns=docker.io", "docker.io/library/busybox/manifests/1?ns=docker.io"),
        ("a/b/blobs/sha256:0?ns=own.lan:8443&x=y", "own.lan_8443/a/b/blobs/sha256:0?ns=own.lan:8443&x=y"),
        ("a/manifests/1?ns=own.lan%3A8443", "own.lan_8443/a/manifests/1?ns=own.lan%3A8443"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_registry_that_the_query_names_is_put_before_the_repository(
    every: Node, method: str, asked: str, arrives: str
) -> None:
    came(every)
    assert every.ask(method, f"/v2/_upstream/{asked}").status == 200
    assert came(every) == [f"{method} /v2/{arrives}"]


@pytest.mark.parametrize(
    "query",
    ["", "?ns=", "?ns=..", "?ns=a/b", "?ns=a%2Fb", "?ns=%2e%2e", "?ns=.lan", "?ns=[::1]:5000", "?ns=_zot", "?ns=A.lan",
     "?ns=a.lan%0d%0aX:1", "?ns=a.lan%0a", "?ns=a.lan%0d%0a", "?ns=a.lan%00", "?ns=a.lan%20b", "?ns=a.lan%252e",
     "?ns=a.lan:x", "?NS=a.lan"],
)  # fmt: skip
def test_a_query_that_names_no_registry_reaches_nothing(every: Node, query: str) -> None:
    came(every)
    assert every.ask("GET", f"/v2/_upstream/a/manifests/1{query}").status == 404
    assert came(every) == []


def test_nothing_is_written_by_that_way_and_others_have_none(every: Node, distribution: Node) -> None:
    came(every), came(distribution)
    assert every.ask("PUT", "/v2/_upstream/a/manifests/1?ns=docker.io", PUSH, b"{}").status == 404
    assert every.ask("GET", "/v2/_upstream/../_catalog?ns=docker.io").status == 404
    assert distribution.ask("GET", "/v2/_upstream/a/manifests/1?ns=docker.io").status == 404
    assert came(every) + came(distribution) == []
    assert every.ask("GET", "/v2/quay.io/a/manifests/1?ns=quay.io").status == 200
    assert came(every) == ["GET /v2/quay.io/a/manifests/1?ns=quay.io"], "one with a mirror of its own"


# ---- what is written, and by whom --------------------------------------------------------------------------------

DIGEST = "sha256:" + "0" * 64
WRITES = [
    "POST /v2/a/blobs/uploads/",
    "POST /v2/a/blobs/uploads",
    f"POST /v2/a/b-c/d__e.f/blobs/uploads/?mount={DIGEST}&from=other%2Fname",
    f"PATCH /v2/a/blobs/uploads/0b5c_-.=Z?_w={EPOCH}",
    f"PATCH /v2/a/blobs/uploads/u?_state=a%3Db&_w={EPOCH}",
    f"PUT /v2/a/blobs/uploads/u?_w={EPOCH}&digest={DIGEST.replace(':', '%3A')}",
    f"DELETE /v2/a/blobs/uploads/u?_w={EPOCH}",
    "PUT /v2/a/manifests/v1.2_3-X",
    f"PUT /v2/10.0.0.1/x/manifests/{DIGEST}",
    f"PUT /v2/a/manifests/{DIGEST}?tag=v1.2_3-X&tag=no-trash-1",
    f"DELETE /v2/a/manifests/{DIGEST}",
]


@pytest.mark.parametrize("request_", WRITES)
@pytest.mark.parametrize("frontend", ["zot", "distribution"])
def test_what_a_client_writes_arrives(frontend: str, request_: str, request: pytest.FixtureRequest) -> None:
    node: Node = request.getfixturevalue(frontend)
    came(node)
    method, target = request_.split()
    assert node.ask(method, target, PUSH, b"{}").status in (200, 202)
    assert came(node) == [request_]


def test_a_blob_is_deleted_only_where_all_processes_know_of_it(zot: Node, distribution: Node) -> None:
    """Distribution's other processes went on saying that it is there, and a push left it out."""
    came(zot), came(distribution)
    assert zot.ask("DELETE", f"/v2/a/blobs/{DIGEST}", PUSH).status in (200, 202)
    answer = distribution.ask("DELETE", f"/v2/a/blobs/{DIGEST}", PUSH)
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (405, "UNSUPPORTED")
    assert came(zot) + came(distribution) == [f"DELETE /v2/a/blobs/{DIGEST}"]


#: With the login, at the writer: what goes round a rule that looks at the path or at the epoch.
ROUND = [
    f"PUT /v2/a/%6danifests/v1?_w={EPOCH}",
    "PUT /v2/a/manifests/v%31",
    "PATCH /v2/a/blobs/%75ploads/u?_w=3",
    "PATCH /v2/a/blobs/uploads//u",
    "PATCH /v2/a/blobs/uploads/u/",
    "PATCH /v2/a/blobs//uploads/u",
    "PATCH /v2//a/blobs/uploads/u",
    "PATCH /v2/a/blobs/uploads/./u",
    "PATCH /v2/a/blobs/./uploads/u",
    "PATCH /v2/a/x/../blobs/uploads/u",
    "PATCH /v2/a/blobs/uploads%2Fu",
    "PATCH /v2/a/blobs/uploads/u;x",
    f"PATCH /v2/a/blobs/uploads/u?_w={EPOCH + 1}&_w={EPOCH}",
    f"PATCH /v2/a/blobs/uploads/u?_w={EPOCH}&_w={EPOCH - 1}",
    "PATCH /v2/a/blobs/uploads/u",
    "PATCH /v2/a/blobs/uploads/u?_w=3",
    "PUT /v2/a/blobs/uploads/u?_w=",
    f"PUT /v2/a/blobs/uploads/u?%5fw={EPOCH}",
    f"PUT /v2/a/manifests/{DIGEST}?tag=%74rash-v1",
    f"PUT /v2/a/manifests/{DIGEST}?t%61g=trash-v1",
    f"PUT /v2/a/manifests/{DIGEST}?tag=+trash-v1",
    f"PUT /v2/a/manifests/{DIGEST}?tag=%74rash-v1&a=%zz",
    f"PUT /v2/a/manifests/{DIGEST}?a;tag=trash-v1",
    f"PUT /v2/a/blobs/uploads/u?_w={EPOCH}&%64igest=sha512:{'0' * 128}",
    f"PUT /v2/a/blobs/uploads/u?_w={EPOCH}&x;digest={DIGEST}&digest=sha512:{'0' * 128}",
    f"PUT /v2/a/blobs/uploads/u?_w={EPOCH}&x?digest={DIGEST}&digest=sha512:{'0' * 128}",
    f"POST /v2/a/blobs/uploads/?%6dount={DIGEST}&from=b",
    "PUT /v2/A/manifests/v1",
    "PUT /v2/_a/manifests/v1",
    "PUT /v2/a/.b/manifests/v1",
    "PUT /v2/a/manifests/",
    "PUT /v2/a/manifests/v1/",
    "PUT /v2/manifests/v1",
    "PUT /v2/a/tags/list",
    "POST /v2/_zot/ext/search",
    "POST /v2/",
]


@pytest.mark.parametrize("request_", ROUND)
def test_no_other_spelling_of_a_write_arrives(zot: Node, request_: str) -> None:
    came(zot)
    method, target = request_.split()
    answer = zot.ask(method, target, PUSH, b"{}")
    assert answer.status in (400, 404, 503)
    assert came(zot) == []


@pytest.mark.parametrize(
    "request_",
    [
        f"PUT /v2/a/blobs/uploads/u?_w={EPOCH}&digest=sha512:{'0' * 128}",
        f"PUT /v2/a/blobs/uploads/u?digest=sha512%3A{'0' * 128}&_w={EPOCH}",
        f"POST /v2/a/blobs/uploads/?digest=sha384:{'0' * 96}",
        f"PUT /v2/a/manifests/sha512:{'0' * 128}",
        "PUT /v2/a/manifests/sha256:none",  # for zot that is a tag, which nothing else knows from a digest
        f"PUT /v2/a/manifests/sha256:{'0' * 63}g",
    ],
)
@pytest.mark.parametrize("frontend", ["zot", "distribution"])
def test_digests_are_of_the_kind_that_all_who_delete_know(
    frontend: str, request_: str, request: pytest.FixtureRequest
) -> None:
    node: Node = request.getfixturevalue(frontend)
    came(node)
    method, target = request_.split()
    answer = node.ask(method, target, PUSH, b"{}")
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    assert came(node) == []
    assert node.ask("DELETE", f"/v2/a/manifests/sha512:{'0' * 128}", PUSH).status == 200, "what is there may go"


@pytest.mark.parametrize(
    "target", ["a+b", "x" * 129, f"{DIGEST}?tag=.x", f"{DIGEST}?tag=v1&tag=-x", f"{DIGEST}?tag={'x' * 129}"]
)
@pytest.mark.parametrize("frontend", ["zot", "distribution"])
def test_a_tag_is_one_that_clients_can_name(frontend: str, target: str, request: pytest.FixtureRequest) -> None:
    """zot takes nearly anything."""
    node: Node = request.getfixturevalue(frontend)
    came(node)
    answer = node.ask("PUT", f"/v2/a/manifests/{target}", PUSH, b"{}")
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (400, "NAME_INVALID")
    assert came(node) == []
    assert node.ask("DELETE", f"/v2/a/manifests/{target}", PUSH).status == (400 if "?" in target else 200)
    for good in ("x" * 128, "_.-", f"{DIGEST}?tag={'x' * 128}&tag=v1"):
        assert node.ask("PUT", f"/v2/a/manifests/{good}", PUSH, b"{}").status == 200


HOSTILE_METHODS = ("POST", "PUT", "PATCH", "DELETE")
HOSTILE_TARGETS = (
    "/v2/a/blobs/uploads/", f"/v2/a/blobs/uploads/u?_w={EPOCH}", "/v2/a/manifests/v1", f"/v2/a/blobs/{DIGEST}",
    "/v2/a/%6danifests/v1", "/v2//a/manifests/v1", "/v2/./a/manifests/v1", "/V2/a/manifests/v1",
    "http://x/v2/a/manifests/v1", "/v2/a/manifests/v1#", "/healthz", "/healthz/../v2/a/manifests/v1", "/v2",
)  # fmt: skip
HOSTILE_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"Authorization": "Basic Og=="},
    {"Authorization": "Basic cHVzaDp3cm9uZw=="},
    {"X-HTTP-Method-Override": "PUT", "X-Forwarded-For": "127.0.0.1"},
)


def refused(answer: Answer) -> bool:
    return answer.status >= 400 or answer.status == 0 or answer.body == b"ok"  # the last is /healthz, which is nobody's


def test_no_write_arrives_without_the_login(zot: Node) -> None:
    """At the open gate."""
    came(zot)
    hostile = list(itertools.product(HOSTILE_METHODS, HOSTILE_TARGETS, HOSTILE_HEADERS))
    assert len(hostile) >= 200
    for method, target, headers in hostile:
        assert refused(zot.ask(method, target, headers, b"x")), f"{method} {target} {headers}"
    for method in ("put", "PUTT", "CONNECT", "TRACE", "PROPFIND", "MOVE"):
        assert refused(zot.ask(method, "/v2/a/manifests/v1", PUSH)), method
    # A GET that a frontend could take for something else, and two requests in one.
    smuggled = b"0\r\n\r\nPUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    for headers in ({"Transfer-Encoding": "chunked"}, {"Content-Length": str(len(smuggled))},
                    {"Transfer-Encoding": "chunked", "Content-Length": "5"}):  # fmt: skip
        zot.ask("GET", READ, headers, smuggled)
    assert [one for one in came(zot) if not one.startswith("GET ")] == []


def test_no_write_arrives_while_the_gate_is_shut(standby: Node) -> None:
    """With the login. Those that may wait for a writer are asked side by side elsewhere."""
    came(standby)
    for method, target in itertools.product(HOSTILE_METHODS, HOSTILE_TARGETS[4:]):
        assert refused(standby.ask(method, target, PUSH, b"x")), f"{method} {target}"
    assert came(standby) == []


# ---- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["/v2/_zot/ext/search", "/v2/_oci/ext/discover", "/v2/_admin", "/v2/%5fzot/ext/search", "/v2//_zot", "/v2/./_zot",
     "/v2/a/../_zot", "/v2/a/%2e%2e/_zot", "/v2/%2f_zot", "/v2/_catalog/../_zot", "/v2/.."],
)  # fmt: skip
@pytest.mark.parametrize("headers", [{}, PUSH], ids=["anonymous", "push"])
def test_extensions_and_administration_are_not_reached(zot: Node, target: str, headers: dict[str, str]) -> None:
    came(zot)
    assert zot.ask("GET", target, headers).status == 404
    assert came(zot) == []


@pytest.mark.parametrize(
    "target", ["/v2/_catalog", READ, f"/v2/a/b/blobs/{DIGEST.replace(':', '%3A')}", "/v2/a/tags/list"]
)
def test_what_a_client_reads_arrives(zot: Node, target: str) -> None:
    came(zot)
    assert zot.ask("GET", target).status == 200
    assert came(zot) == [f"GET {target}"]


@pytest.mark.parametrize(
    "field",
    ["Transfer-Encoding: chunked", *(f"Content-Length: {n}" for n in (100, 2**31, 2**32 - 1, 2**32, 2**33, 2**63 - 1))],
)
def test_a_read_whose_body_drips_is_ended_and_costs_the_frontend_nothing(zot: Node, field: str) -> None:
    came(zot)
    with zot.connect(timeout=5) as connection:
        connection.sendall(f"GET {READ} HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n1".encode())
        assert ended(connection)
    assert came(zot) == []


def test_a_read_may_say_that_it_has_no_body(zot: Node) -> None:
    assert zot.ask("GET", READ, {"Content-Length": "0"}).status == 200


def ended(connection: socket.socket) -> bool:
    """Whether HAProxy ends *connection*; False if it is silent for as long as its patience."""
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:  # reset, or no end of TLS
        return True


# ---- how many, and for how long ----------------------------------------------------------------------------------

MOST, SOURCE, RESERVE = 120, 40, 30


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Node]]:
    """Two servers that take few connections."""
    for name, value in (
        ("PUBLIC_MOST", MOST),
        ("SOURCE_MOST", SOURCE),
        ("SERVERS_RESERVE", RESERVE),
        ("INTERNAL_MOST", 20),
    ):
        monkeypatch.setattr(haproxy, name, value)
    # Who says nothing stays for longer than any of these tests, however slow: what is free again lets others in.
    with nodes(ZOT, "cp-1", "cp-2", instead={"timeout client-hs 5s": "timeout client-hs 55s"}) as made:
        yield made


def silent_connections(stack: ExitStack, node: Node, source: str, count: int) -> None:
    """Connections that say nothing, and stay open as far as HAProxy lets them."""
    for _ in range(count):
        with suppress(ConnectionError):
            stack.enter_context(socket.create_connection((node.address, paths.REGISTRY_PORT), 5, (source, 0)))


def served(node: Node, source: str) -> bool:
    """Whether who comes from *source* gets an answer."""
    try:
        return node.ask("GET", READ, source=source).status == 200
    except OSError:
        return False


def test_one_client_does_not_keep_out_the_others(pair: list[Node]) -> None:
    node = pair[0]
    with ExitStack() as stack:
        silent_connections(stack, node, "127.201.0.1", 10 * MOST)
        for source in ("127.201.0.2", node.address, pair[1].address):
            assert node.ask("GET", READ, source=source).status == 200, source
        with pytest.raises((OSError, ssl.SSLError)):
            node.ask("GET", READ, source="127.201.0.1", timeout=5)
    # HAProxy has to be run until it knows that they are gone.
    end = time.monotonic() + 30
    while not served(node, "127.201.0.1"):
        assert time.monotonic() < end, "when they are gone it is as before"
        time.sleep(0.05)


def test_many_clients_keep_out_neither_the_servers_nor_what_servers_ask_of_each_other(pair: list[Node]) -> None:
    node, other = pair
    member = other.client()
    member.check_hostname = False
    member.load_cert_chain(other.folder / "etc/haproxy/node.pem")
    with ExitStack() as stack:
        for number in range(10):
            silent_connections(stack, node, f"127.202.0.{number + 1}", SOURCE)
        with pytest.raises((OSError, ssl.SSLError)):
            node.ask("GET", READ, source="127.203.0.1", timeout=3)
        for source in (node.address, other.address, node.loopback):
            assert node.ask("GET", READ, source=source).status == 200, source
        with node.connect(source=other.address, port=paths.INTERNAL_PORT, tls=member) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_user_or_a_pod_of_another_server_keeps_out_neither_clients_nor_the_look_of_the_agent(
    pair: list[Node],
) -> None:
    """It comes by the address of its server."""
    node, other = pair
    with ExitStack() as stack:
        silent_connections(stack, node, other.address, 2 * MOST)
        for source in ("127.201.0.2", node.address):
            assert node.ask("GET", READ, source=source, timeout=5).status == 200, source
        for number in range(4):
            silent_connections(stack, node, f"127.202.0.{number + 1}", SOURCE)
        assert node.ask("GET", READ, source=node.address, timeout=5).status == 200


def test_only_servers_reach_the_port_of_the_servers(pair: list[Node]) -> None:
    """Also with the certificate of one."""
    node, other = pair
    member = other.client()
    member.check_hostname = False
    member.load_cert_chain(other.folder / "etc/haproxy/node.pem")
    with pytest.raises((OSError, ssl.SSLError)):
        node.connect(source="127.203.0.1", port=paths.INTERNAL_PORT, tls=member, timeout=3)


def test_a_server_asks_another_one_by_the_address_that_it_is_known_by(pair: list[Node]) -> None:
    """When the own frontend is gone; reads then come from the other server's."""
    node, other = pair
    node.tell("set server reads/local state maint", "set server reads/cp-3 state maint")
    came(other)
    assert node.ask("GET", READ).status == 200
    assert came(other) == [f"GET {READ}"]
    assert came(node) == []


def test_who_pushes_is_told_to_upload_a_blob_for_which_a_node_cannot_look() -> None:
    """Two do not have it, and the zot of the third, which is asked last, is starting. Others learn of that."""
    blob, ours = f"/v2/absent/blobs/{DIGEST}", {"User-Agent": "kubeadm-registry"}
    with nodes(ZOT, "cp-1", "cp-2", "cp-3") as [node, _, third]:
        third.tell("set server own/local state maint")
        seen = {
            name: {node.ask(method, blob, headers).status for _ in range(8)}
            for name, method, headers in (
                ("push", "HEAD", PUSH), ("ours", "HEAD", {**PUSH, **ours}), ("pull", "HEAD", {}), ("get", "GET", PUSH)
            )
        }  # fmt: skip
    assert seen.pop("push") == {404}
    assert all(503 in statuses for statuses in seen.values()), seen


def test_repositories_are_listed_where_nothing_is_written(pair: list[Node]) -> None:
    """zot looks at each of them; meanwhile a push waits, and each read after it."""
    writer, other = pair
    writer.open_gate(EPOCH)
    for one, peer in ((writer, "cp-2"), (other, "cp-1")):
        one.tell("set server reads/cp-3 state maint", f"set server reads/{peer} state ready")
        for _ in range(8):
            assert one.ask("GET", "/v2/_catalog?n=1000").status == 200
    assert writer.ask("GET", READ).status == 200
    assert len(came(other)) >= 15  # of 16, by weight
    assert came(writer)[-1] == f"GET {READ}"


def test_who_says_nothing_is_not_waited_for(zot: Node) -> None:
    """Neither within the TLS handshake nor within the header of a request."""
    if "Version: 2." in zot.tell("show info"):
        pytest.skip("HAProxy 2 knows no time-out for the handshake alone")
    began = time.monotonic()
    with socket.create_connection((zot.address, paths.REGISTRY_PORT), 30) as bare, zot.connect(timeout=30) as header:
        header.sendall(b"GET /v2/ HTTP/1.1\r\nHost: ")
        assert ended(bare)
        assert 3 < time.monotonic() - began < 9, "it waits for 5 s, and not for 10 as in a header"
        assert header.recv(100).startswith(b"HTTP/1.1 408")


# ---- waiting for a writer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", ["POST /v2/a/blobs/uploads/", f"PATCH /v2/a/blobs/uploads/u?_w={EPOCH}"])
def test_a_write_without_a_writer_is_held_for_15_seconds_and_then_refused(standby: Node, request_: str) -> None:
    came(standby)
    method, target = request_.split()
    answer = standby.ask(method, target, PUSH, timeout=30)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert 14.5 < answer.seconds < 25
    assert came(standby) == []


def test_what_was_begun_goes_on_while_the_writer_is_about_to_move(zot: Node) -> None:
    came(zot)
    zot.tell("set server newwork/open state maint")
    try:
        assert zot.ask("PATCH", f"/v2/a/blobs/uploads/u?_w={EPOCH}", PUSH).status == 202
        for method, target in (("POST", "/v2/a/blobs/uploads/"), ("PUT", "/v2/a/manifests/v1")):
            with pytest.raises(TimeoutError):  # held for longer than any move takes
                zot.ask(method, target, PUSH, timeout=1)
        assert came(zot) == [f"PATCH /v2/a/blobs/uploads/u?_w={EPOCH}"]
    finally:
        zot.tell("set server newwork/open state ready")


def test_a_client_of_a_vip_that_has_moved_is_sent_away_with_its_next_request(distribution: Node) -> None:
    vip = f"{distribution.address.rpartition('.')[0]}.10"
    get = b"GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n"

    def closes(address: str) -> bool:
        with replace(distribution, address=address).connect() as connection:
            connection.sendall(get)
            return b"connection: close" in connection.recv(1000)

    assert not closes(vip)
    distribution.tell("set server vip/here state maint")
    try:
        assert closes(vip)
        assert not closes(distribution.address), "that address has not moved"
    finally:
        distribution.tell("set server vip/here state ready")


def test_nothing_is_written_while_no_clock_is_to_be_trusted(distribution: Node) -> None:
    names = ("local", "cp-2", "cp-3")
    distribution.tell(*(f"set server writer/{name} state maint" for name in names))
    try:
        answer = distribution.ask("PUT", "/v2/a/manifests/v1", PUSH)
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert b"their clocks differ" in answer.body
        assert distribution.ask("GET", "/v2/a/manifests/v1").status == 200
    finally:
        distribution.tell(*(f"set server writer/{name} state ready" for name in names))


def test_a_write_that_waits_goes_on_once_there_is_a_writer() -> None:
    with nodes(ZOT, "cp-1") as [node], node.connect() as connection:
        fields = {"Host": "x", "Content-Length": "0", **PUSH}
        head = "POST /v2/a/blobs/uploads/ HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        node.tell("set server newwork/open state maint")
        connection.sendall(f"{head}\r\n".encode())
        time.sleep(0.3)
        assert node.arrived == []
        node.tell("set server newwork/open state ready")
        node.open_gate(EPOCH)
        assert connection.recv(1000).startswith(b"HTTP/1.1 202")
        assert node.arrived == ["POST /v2/a/blobs/uploads/"]


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("POST /v2/a/blobs/uploads/", "_w=8"),
        ("PATCH /v2/a/blobs/uploads/u?_w=7", "the writer has moved"),
        ("PATCH /v2/a/blobs/uploads/u?_w=8", "HTTP/1.1 202"),
    ],
)
def test_what_waited_is_of_the_epoch_of_the_writer_that_came(request_: str, wanted: str) -> None:
    """Not of the one when it began to wait: a new upload goes on, one of the writer before does not."""
    method, target = request_.split()
    with nodes(ZOT, "cp-1") as [node], node.connect() as connection:
        node.open_gate(7)
        node.tell("set server writer/local state maint")
        fields = {"Host": "x", "Content-Length": "0", **PUSH}
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        connection.sendall(f"{head}\r\n".encode())
        time.sleep(0.3)
        assert node.arrived == []
        node.open_gate(8)
        assert wanted in connection.recv(2000).decode()


# ---- pushes are closed while space is freed ----------------------------------------------------------------------

OF_A_PUSH = ("POST /v2/a/blobs/uploads/", "PUT /v2/a/manifests/v1", f"PUT /v2/a/blobs/uploads/u?digest={DIGEST}",
             "PATCH /v2/a/blobs/uploads/u", f"HEAD /v2/a/blobs/{DIGEST}")  # fmt: skip
NO_PUSH = (f"GET /v2/a/blobs/{DIGEST}", "GET /v2/a/manifests/v1", "HEAD /v2/a/manifests/v1", "GET /v2/a/tags/list",
           f"DELETE /v2/a/manifests/{DIGEST}")  # fmt: skip


def close(node: Node, seconds: float) -> None:
    """Close pushes for so many *seconds*, or open them."""
    node.tell(f"set map {node.folder}/etc/haproxy/pushes.map closed {int(time.time() + seconds)}")


@pytest.fixture
def closed(distribution: Node) -> Iterator[Node]:
    """A server whose pushes are closed for longer than a test takes."""
    close(distribution, 400)
    came(distribution)
    yield distribution
    close(distribution, -1)


@pytest.mark.parametrize("request_", OF_A_PUSH)
def test_what_belongs_to_a_push_waits_until_pushes_are_open(closed: Node, request_: str) -> None:
    method, target = request_.split()
    with closed.connect() as connection:
        fields = {"Host": "x", "Content-Length": "0", **PUSH}
        fields = fields if method != "HEAD" else {"Host": "x"}
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        connection.sendall(f"{head}\r\n".encode())
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert closed.arrived == []
        close(closed, -1)
        connection.settimeout(30)
        assert connection.recv(1000).startswith(b"HTTP/1.1 20")
        assert closed.arrived == [f"{method} {target}"]


@pytest.mark.parametrize("request_", NO_PUSH)
def test_what_is_no_push_goes_on_while_pushes_are_closed(closed: Node, request_: str) -> None:
    method, target = request_.split()
    assert closed.ask(method, target, PUSH, timeout=30).status in (200, 202)


def test_pushes_open_by_themselves_at_the_time_in_the_map(distribution: Node) -> None:
    came(distribution)
    end = int(time.time() + 3)
    close(distribution, 3)
    assert distribution.ask("PUT", "/v2/a/manifests/v1", PUSH, b"{}", timeout=30).status == 200
    assert time.time() >= end


def test_a_nearly_full_disk_takes_deletions_and_records_and_no_push(distribution: Node) -> None:
    name = f"{distribution.folder}/etc/haproxy/pushes.map"
    distribution.tell(f"set map {name} full {int(time.time() + 400)}")
    came(distribution)
    for request_ in OF_A_PUSH[:4]:
        assert distribution.ask(*request_.split(), PUSH, b"{}").status == 507
    assert came(distribution) == []
    passing = (*NO_PUSH, OF_A_PUSH[4], "PUT /v2/kubeadm-registry/retention/manifests/ledger")
    for request_ in passing:
        method, target = request_.split()
        assert distribution.ask(method, target, PUSH).status in (200, 202)
    assert came(distribution) == [*passing]
    distribution.tell(f"set map {name} full {int(time.time() + 2)}")
    end = time.monotonic() + 30
    while distribution.ask("PUT", "/v2/a/manifests/v1", PUSH, b"{}").status == 507:
        assert time.monotonic() < end, "it does not end by itself"
    distribution.tell(f"set map {name} full 0")


@pytest.mark.parametrize("off", [7200, -7200])
def test_pushes_wait_until_that_time_also_where_the_clock_was_set(tmp_path: Path, off: int) -> None:
    """HAProxy's own time begins with the wall clock and never steps: it is off by as much as that was set since."""
    step = tmp_path / "step.lua"
    step.write_text(
        f"local now = core.now\ncore.now = function() local t = now(); t.sec = t.sec + {off}; return t end\n"
    )
    with nodes(DISTRIBUTION, "cp-1", instead={"  lua-load ": f"  lua-load {step}\n  lua-load "}) as [node]:
        end = int(time.time() + 3)
        close(node, 3)
        assert node.ask("PUT", "/v2/a/manifests/v1", PUSH, b"{}", timeout=30).status == 200
        assert end <= time.time()


@pytest.mark.long
def test_a_push_is_refused_for_a_while_after_five_minutes(closed: Node) -> None:
    answer = closed.ask("PUT", "/v2/a/manifests/v1", PUSH, b"{}", timeout=330)
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")
    assert 295 < answer.seconds < 310
    assert closed.arrived == []


# ---- what carries out retention ----------------------------------------------------------------------------------

RETENTION = {"Authorization": f"Basic {basic('retention', 'the-retention-password')}"}
UNDER_TERM = {**RETENTION, "X-Registry-Term": str(EPOCH)}
CARRIED_OUT = [
    f"DELETE /v2/a/manifests/{DIGEST}",
    "DELETE /v2/a/manifests/v1",
    "PUT /v2/a/manifests/trash-v1",
    "PUT /v2/kubeadm-registry/retention-trash/a/manifests/v1",
    "PUT /v2/kubeadm-registry/retention/manifests/plan",
    "DELETE /v2/kubeadm-registry/retention/manifests/ledger",
    "POST /v2/kubeadm-registry/retention/blobs/uploads/",
    f"PUT /v2/kubeadm-registry/retention/blobs/uploads/u?_w={EPOCH}&digest={DIGEST}",
]


@pytest.fixture(params=["zot", "distribution"])
def executor(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A server that holds the lease; the agent alone, where there is one writer, sends others' writes to it."""
    node: Node = request.getfixturevalue(request.param)
    node.open_gate(EPOCH)
    came(node)
    yield node
    node.open_gate(EPOCH)


@pytest.mark.parametrize("request_", CARRIED_OUT)
@pytest.mark.parametrize("place", ["loopback", "address"])
def test_retention_writes_from_the_node_that_holds_the_lease(executor: Node, request_: str, place: str) -> None:
    method, target = request_.split()
    answer = executor.ask(method, target, UNDER_TERM, b"{}", source=getattr(executor, place))
    assert answer.status in (200, 202)
    assert came(executor) == [request_]
    assert executor.fields[-1].get("x-registry-term") is None
    assert executor.fields[-1].get("authorization") is None


def test_retention_reads_as_anybody_does(executor: Node) -> None:
    for method in ("GET", "HEAD"):
        assert executor.ask(method, READ, RETENTION).status == 200
    assert executor.ask("GET", "/v2/", RETENTION).status == 200


OTHER_TERMS: list[list[str]] = [
    [], [""], ["0"], [str(EPOCH + 1)], [str(EPOCH - 1)], [f"0{EPOCH}"], [f"{EPOCH}.0"], [f"{EPOCH},{EPOCH}"],
    [f"{EPOCH}, 5"], [f"{EPOCH} 5"], [str(EPOCH)] * 2, [str(EPOCH), "5"], ["5", str(EPOCH)], [f'"{EPOCH}"'],
]  # fmt: skip


@pytest.mark.parametrize("terms", OTHER_TERMS, ids=repr)
def test_retention_writes_under_the_term_of_its_node_only(executor: Node, terms: list[str]) -> None:
    head = {**RETENTION, "X-Registry-Term": "\r\nX-Registry-Term: ".join(terms)} if terms else RETENTION
    answer = executor.ask("DELETE", f"/v2/a/manifests/{DIGEST}", head, source=executor.loopback)
    assert answer.status == 409
    assert b"the term has changed" in answer.body
    assert json.loads(answer.body)["errors"][0]["code"] == "DENIED"
    assert came(executor) == []


@pytest.mark.parametrize("request_", CARRIED_OUT)
def test_retention_writes_from_nowhere_else(executor: Node, request_: str) -> None:
    """Also with the right term, and whatever the request says about its source."""
    method, target = request_.split()
    head = {**UNDER_TERM, "X-Forwarded-For": executor.address, "Forwarded": f"for={executor.address}"}
    answer = executor.ask(method, target, head, b"{}", source="127.203.0.1")
    assert answer.status == 503
    assert b"no executor here" in answer.body
    assert came(executor) == []


def test_retention_writes_nothing_while_the_gate_is_shut(executor: Node) -> None:
    """Though pushes go on, with Distribution; a body that comes late is looked at once it is there."""
    executor.tell("set server gate/open state maint")
    answer = executor.ask("DELETE", f"/v2/a/manifests/{DIGEST}", UNDER_TERM, source=executor.loopback)
    assert (answer.status, b"does not hold the lease" in answer.body) == (503, True)
    executor.open_gate(EPOCH)
    with executor.connect(source=executor.loopback) as connection:
        fields = {"Host": "x", "Content-Length": "2", **UNDER_TERM}
        head = "PUT /v2/a/manifests/v1 HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        connection.sendall(f"{head}\r\n{{".encode())
        executor.tell("set server gate/open state maint")
        connection.sendall(b"}")
        assert connection.recv(1000).startswith(b"HTTP/1.1 503")
    assert came(executor) == []


def test_retention_writes_nothing_where_no_term_is_known() -> None:
    """As after a reload of HAProxy: an agent of another release may open the gate, and names no term."""
    with nodes(DISTRIBUTION, "cp-1") as [node]:
        node.tell("set server gate/open state ready")
        head = {**RETENTION, "X-Registry-Term": "0"}
        assert node.ask("DELETE", f"/v2/a/manifests/{DIGEST}", head, source=node.loopback).status == 503
        assert node.arrived == []


def test_retention_writes_to_the_own_frontend_only() -> None:
    """Pushes of Distribution go to another one when the own one is away."""
    with nodes(DISTRIBUTION, "cp-1", "cp-2") as [node, other]:
        node.open_gate(EPOCH)
        node.tell("set server writer/local state maint", "set server writer/cp-3 state maint")
        assert node.ask("PUT", "/v2/a/manifests/v1", PUSH, b"{}").status == 200
        assert (node.arrived, other.arrived) == ([], ["PUT /v2/a/manifests/v1"])
        assert node.ask("PUT", "/v2/a/manifests/v2", UNDER_TERM, b"{}", source=node.loopback).status == 200
        assert node.arrived == ["PUT /v2/a/manifests/v2"]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ("PUT /v2/a/manifests/trash-v1", "trash-"),
        ("DELETE /v2/a/b/manifests/trash-", "trash-"),
        (f"PUT /v2/a/manifests/{DIGEST}?tag=trash-v1", "trash-"),
        (f"PUT /v2/a/manifests/{DIGEST}?tag=v1&tag=trash-v1", "trash-"),
        ("PUT /v2/kubeadm-registry/retention-trash/manifests/v1", "the trash"),
        ("PUT /v2/kubeadm-registry/retention-trash/a/b/manifests/v1", "the trash"),
        ("POST /v2/kubeadm-registry/retention-trash/a/blobs/uploads/", "the trash"),
        (f"DELETE /v2/kubeadm-registry/retention-trash/a/blobs/{DIGEST}", "the trash"),
        ("PUT /v2/kubeadm-registry/retention/manifests/plan", "all but the tags"),
        ("PUT /v2/kubeadm-registry/retention/manifests/ledger2", "all but the tags"),
        ("PUT /v2/kubeadm-registry/retention/manifests/operator-plans", "all but the tags"),
        (f"PUT /v2/kubeadm-registry/retention/manifests/{DIGEST}", "all but the tags"),
        (f"DELETE /v2/kubeadm-registry/retention/manifests/{DIGEST}", "all but the tags"),
        ("DELETE /v2/kubeadm-registry/retention/manifests/ledger", "deleted by retention only"),
        ("DELETE /v2/kubeadm-registry/retention/manifests/operator-plan", "deleted by retention only"),
        (f"DELETE /v2/kubeadm-registry/retention/blobs/{DIGEST}", "freed by images collect only"),
        ("POST /v2/kubeadm-registry/retention/sub/blobs/uploads/", "all but the tags"),
    ],
)
def test_nobody_else_writes_what_retention_keeps(executor: Node, request_: str, why: str) -> None:
    method, target = request_.split()
    answer = executor.ask(method, target, {**PUSH, "X-Registry-Term": str(EPOCH)}, b"{}", source=executor.loopback)
    assert answer.status == 403
    assert why in json.loads(answer.body)["errors"][0]["message"]
    assert came(executor) == []


@pytest.mark.parametrize(
    "request_",
    [
        "PUT /v2/kubeadm-registry/retention/manifests/ledger",
        "PUT /v2/kubeadm-registry/retention/manifests/operator-plan",
        "POST /v2/kubeadm-registry/retention/blobs/uploads/",
        f"PUT /v2/kubeadm-registry/retention/blobs/uploads/u?_w={EPOCH}&digest={DIGEST}",
        "PUT /v2/kubeadm-registry/retention-tools/manifests/v1",
        "PUT /v2/trash-a/manifests/v1",
        "PUT /v2/a/manifests/v1-trash-2",
    ],
)
def test_the_ledger_and_all_else_is_written_as_before(executor: Node, request_: str) -> None:
    method, target = request_.split()
    head = {**PUSH, "X-Registry-Term": "any"}
    assert executor.ask(method, target, head, b"{}").status in (200, 202)
    assert came(executor) == [request_]
    assert executor.fields[-1].get("x-registry-term") is None


def test_what_records_have_left_is_freed_while_pushes_are_closed(zot: Node) -> None:
    """Each record that is written leaves the one before; zot refuses what a manifest needs."""
    request_ = f"DELETE /v2/kubeadm-registry/retention/blobs/{DIGEST}"
    method, target = request_.split()
    close(zot, 400)
    came(zot)
    try:
        assert zot.ask(method, target, PUSH).status in (200, 202)
    finally:
        close(zot, -1)
    assert came(zot) == [request_]
    assert zot.ask(method, target, PUSH).status == 403


# ---- what is noted -----------------------------------------------------------------------------------------------


def test_a_read_is_noted_as_the_frontend_reads_its_path() -> None:
    """Retention and the freeing of space go by the log, and Distribution decodes what a client has encoded."""
    encoded = DIGEST.replace(":", "%3A")
    paths_noted = {
        f"/v2/a/manifests/{encoded}": f"/v2/a/manifests/{DIGEST}",
        f"/v2/a%2Fb/blobs/{encoded.lower()}?x=%31": f"/v2/a/b/blobs/{DIGEST}",
        "/v2/a/manifests/v1%22,%22status%22:200%5C": '/v2/a/manifests/v1","status":200\\',
        "/v2/a/manifests/v%zz%31": "/v2/a/manifests/v%zz%31",
        "/v2/a/manifests/v1+2": "/v2/a/manifests/v1+2",
    }
    with nodes(DISTRIBUTION, "cp-1", instead={"log /dev/log len 8192": "log stdout len 8192 format raw"}) as [node]:
        for target in paths_noted:
            assert node.ask("GET", target).status == 200
        end = time.monotonic() + 5
        while node.log.count('{"client"') < len(paths_noted) and time.monotonic() < end:
            time.sleep(0.05)
        noted = [json.loads(line)["path"] for line in node.log.splitlines() if line.startswith('{"client"')]
    assert noted == list(paths_noted.values())
