"""The cluster file: what is not valid in it is said all at once, by path, before anything is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kubeadm_registry import config, whoami
from kubeadm_registry.config import RegistryCluster, Ssh, dump, load, parse
from kubeadm_registry.config.explain import model_of
from kubeadm_registry.errors import ConfigError

HEAD = "apiVersion: kubeadm-registry.dev/v1alpha1\nkind: RegistryCluster\n"
NODES = "[{name: a, address: 10.0.0.1}, {name: b, address: 10.0.0.2}, {name: c, address: 10.0.0.3}]"
DUAL = (
    "[{name: a, address: 10.0.0.1, secondaryAddress: 'fd00::1'}, {name: b, address: 10.0.0.2, secondaryAddress: "
    "'fd00::2'}, {name: c, address: 10.0.0.3, secondaryAddress: 'fd00::3'}]"
)


def spec(nodes: str = NODES, vip: str = "{address: 10.0.0.9}", more: str = "") -> str:
    return f"{HEAD}spec:\n  nodes: {nodes}\n  vip: {vip}\n{more}"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml")
    assert caught.value.exit_code == 2
    for problem in caught.value.problems:
        assert f"\n  {problem}" in caught.value.message
    return [str(problem) for problem in caught.value.problems]


BAD = {
    "nothing in it": (
        "{}",
        ["apiVersion: is missing", "kind: is missing", "spec: is missing"],
    ),
    "another kind, another version": (
        "{apiVersion: v1, kind: Pod, spec: {nodes: [{name: a, address: 10.0.0.1}], vip: {address: 10.0.0.9}}}",
        [
            "apiVersion: must be 'kubeadm-registry.dev/v1alpha1' (it is 'v1')",
            "kind: must be 'RegistryCluster' (it is 'Pod')",
        ],
    ),
    "misspelled keys": (
        spec("[{name: a, adress: 10.0.0.1}]", "{address: 10.0.0.9, color: red}", "  frontent: {type: zot}\n"),
        [
            "spec.nodes[0].address: is missing",
            "spec.nodes[0].adress: unknown key, did you mean address?",
            "spec.vip.color: unknown key; known keys: address, secondaryAddress, name, virtualRouterID",
            "spec.frontent: unknown key, did you mean frontend?",
        ],
    ),
    "misspelled above": (
        HEAD.replace("kind", "kinds") + "spec: {nodes: [{name: a, address: 10.0.0.1}], vip: {address: 10.0.0.9}}",
        ["kind: is missing", "kinds: unknown key, did you mean kind?"],
    ),
    "a snake_case key": (
        spec(more="  data_directory: /srv\n  vips: 1\n"),
        [
            "spec.data_directory: unknown key, did you mean dataDirectory?",
            "spec.vips: unknown key, did you mean vip?",
        ],
    ),
    "names": (
        spec("[{name: A, address: 10.0.0.1}]", more="metadata: {name: -x}\n"),
        [
            "metadata.name: must be a DNS label: lower-case letters, digits and dashes, at most 63 characters "
            "(RFC 1123) "
            "(it is '-x')",
            "spec.nodes[0].name: must be a DNS label: lower-case letters, digits and dashes, at most 63 characters "
            "(RFC 1123) "
            "(it is 'A')",
        ],
    ),
    "a node called local": (
        spec(NODES.replace("name: a", "name: local")),
        ["spec.nodes[0].name: must not be 'local', which is reserved for the node itself (it is 'local')"],
    ),
    "no nodes": (
        spec("[]"),
        ["spec.nodes: must have at least 1 item (it has 0)"],
    ),
    "two nodes": (
        spec("[{name: a, address: 10.0.0.1}, {name: b, address: 10.0.0.2}]"),
        ["spec.nodes: two nodes cannot form a quorum when one fails; use three to five nodes, or one for testing"],
    ),
    "six nodes": (
        spec("[" + ", ".join(f"{{name: n{i}, address: 10.0.0.{i}}}" for i in range(1, 7)) + "]"),
        ["spec.nodes: must have at most 5 items (it has 6)"],
    ),
    "what is set twice": (
        spec(
            "[{name: a, address: 10.0.0.1}, {name: a, address: 10.0.0.1}, {name: c, address: 10.0.0.3}]",
            more="  mirrors: [quay.io, quay.io]\n",
        ),
        [
            "spec.nodes[1].name: a is also the name of nodes[0]",
            "spec.nodes[1].address: 10.0.0.1 is also nodes[0].address",
            "spec.mirrors[1]: quay.io is also mirrors[0]",
        ],
    ),
    "an address given twice in two spellings": (
        spec(NODES.replace("10.0.0.", "fd00::").replace("fd00::3", "'fd00:0:0::1'"), "{address: 'fd00::9'}"),
        ["spec.nodes[2].address: fd00::1 is also nodes[0].address"],
    ),
    "the VIP is a node's": (
        spec(vip="{address: 10.0.0.2}"),
        ["spec.nodes[1].address: 10.0.0.2 is the VIP, which must not be a node address"],
    ),
    "the VIP has the name of a node": (
        spec(vip="{address: 10.0.0.9, name: b}"),
        ["spec.vip.name: must not be the name of a node: every node's certificate has the name of the VIP"],
    ),
    "the name of the VIP is an address": (
        spec(vip="{address: 10.0.0.9, name: 10.0.0.8}"),
        ["spec.vip.name: must be a name, not an address (it is '10.0.0.8')"],
    ),
    "the name of the VIP is too long for the directory in which containerd looks for it": (
        spec(vip=f"{{address: 10.0.0.9, name: {'a.' * 124}ab}}"),
        [
            "spec.vip.name: must be a DNS name in lower case (RFC 1123), at most 249 characters "
            f"(it is '{'a.' * 39}a ... (250 characters))"
        ],
    ),
    "the second VIP is a node's": (
        spec(DUAL, "{address: 10.0.0.9, secondaryAddress: 'fd00::3'}"),
        ["spec.nodes[2].secondaryAddress: fd00::3 is the VIP, which must not be a node address"],
    ),
    "families mixed": (
        spec("[{name: a, address: 10.0.0.1}, {name: b, address: 'fd00::2'}, {name: c, address: 10.0.0.3, "
             "secondaryAddress: 10.0.1.3}]", "{address: 'fd00::9', secondaryAddress: 'fd00::8'}"),
        [
            "spec.nodes[1].address: must be of the same address family as nodes[0].address",
            "spec.nodes[2].secondaryAddress: must be of the other address family than address",
            "spec.vip.address: must be of the same address family as nodes[0].address",
            "spec.vip.secondaryAddress: must be of the other address family than vip.address",
            "spec.vip.secondaryAddress: requires a secondaryAddress on every node",
        ],
    ),
    "a second VIP without second addresses": (
        spec(DUAL.replace(", secondaryAddress: 'fd00::2'", ""), "{address: 10.0.0.9, secondaryAddress: 'fd00::9'}"),
        ["spec.vip.secondaryAddress: requires a secondaryAddress on every node"],
    ),
    "addresses of no server": (
        spec("[{name: a, address: cp-1.example}, {name: b, address: 127.0.0.1}, {name: c, address: 'fe80::1'}]",
             "{address: 224.0.0.18}"),
        [
            "spec.nodes[0].address: must be an IPv4 or IPv6 address, not a name, because DNS may not be "
            "available yet (it is 'cp-1.example')",
            "spec.nodes[1].address: must be a unicast address, not a loopback, multicast or unspecified one "
            "(it is '127.0.0.1')",
            "spec.nodes[2].address: must not be link-local, because containerd cannot specify the interface "
            "(it is 'fe80::1')",
            "spec.vip.address: must be a unicast address, not a loopback, multicast or unspecified one "
            "(it is '224.0.0.18')",
        ],
    ),
    "choices and ranges": (
        spec(vip="{address: 10.0.0.9, virtualRouterID: 256}",
             more="  frontend: {type: harbor}\n  ssh: {port: 0, user: ''}\n  proxy: {anonymousPull: perhaps}\n"),
        [
            "spec.vip.virtualRouterID: must be at most 255 (it is 256)",
            "spec.ssh.user: must be a user name without blanks that does not start with a dash (it is '')",
            "spec.ssh.port: must be at least 1 (it is 0)",
            "spec.frontend.type: must be 'zot' or 'distribution' (it is 'harbor')",
            "spec.proxy.anonymousPull: must be true or false, without quotes (it is 'perhaps')",
        ],
    ),
    "mirrors": (
        spec(more="  mirrors: [docker, 'https://quay.io', Quay.io, 'quay.io/x', 'localhost:5000']\n"),
        [
            f"spec.mirrors[{i}]: must be a registry host as used in image names, such as registry.k8s.io, "
            f'or "*" for all (it is \'{value}\')'
            for i, value in enumerate(("docker", "https://quay.io", "Quay.io", "quay.io/x"))
        ],
    ),
    "directories": (
        spec(more="  dataDirectory: srv\n"),
        ["spec.dataDirectory: must be an absolute path of letters, digits, dots, dashes and underscores, without "
         "'..', at most 200 characters (it is 'srv')"],
    ),
    "a list where a mapping belongs": (
        spec(vip="[10.0.0.9]"),
        ["spec.vip: must be a mapping of keys to values (it is a list)"],
    ),
    "versions of Kubernetes": (
        spec(more="  kubernetes: {version: '1.36'}\n"),
        ["spec.kubernetes.version: must be a version of three numbers, such as v1.36.3 (it is '1.36')"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD)
def test_every_problem_is_told_by_path(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/.", "/srv/../etc", "/srv/a b", "/srv/$(id)", "/srv/a'b", "/srv/a\nb", "relative", "", "/srv/{x}"],
)
def test_a_data_directory_needs_no_quoting(path: str) -> None:
    """It stands in units and configuration files as it is."""
    (problem,) = problems(spec(more=f"  dataDirectory: {yaml.safe_dump(path)}"))
    assert problem.startswith("spec.dataDirectory: must be an absolute path")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/opt/kubeadm-registry/data", "must not be in /opt/kubeadm-registry, which belongs to kubeadm-registry"),
        ("//opt/kubeadm-registry", "must not be in /opt/kubeadm-registry"),
        ("/etc/kubeadm-registry/x", "must not be in /etc, which belongs to the operating system"),
        ("/run/kubeadm-registry/data", "must not be in /run, which is emptied at boot"),
        ("/run/x", "must not be in /run"),
        ("/tmp", "must not be in /tmp"),
        ("/var/tmp/x", "must not be in /var/tmp"),
        ("/root", "must not be in /root, which is hidden from the services"),
        ("/home/ann/registry", "must not be in /home"),
        ("/proc/1", "must not be in /proc"),
        ("/usr/local/share/registry", "must not be in /usr"),
        ("/var/lib/etcd", "must not be in /var/lib/etcd, which belongs to Kubernetes or a container runtime"),
        ("/etc/kubernetes", "must not be in /etc"),
        ("/var/lib/containerd/x/", "must not be in /var/lib/containerd"),
        ("/opt", "must not be /opt, which contains /opt/kubeadm-registry; use a separate directory, such as "
                 "/opt/registry"),
        ("/var/./lib", "must not be /var/lib, which contains "),
        ("/" + 70 * "abc", "must be an absolute path"),
    ],
)  # fmt: skip
def test_a_data_directory_is_nobody_elses(path: str, words: str) -> None:
    """What is there would be given other owners, hidden from the services, or removed by reset with the images."""
    (problem,) = problems(spec(more=f"  dataDirectory: {path}\n"))
    assert problem.startswith(f"spec.dataDirectory: {words}")
    assert f"(it is '{path}"[:80] in problem


@pytest.mark.parametrize("path", ["/srv", "/mnt/disk", "/data", "/opt/registry", "/var/lib/etcd2", "/var/registry/"])
def test_a_data_directory_of_its_own(path: str) -> None:
    assert parse(spec(more=f"  dataDirectory: {path}\n"), "x").spec.data_directory == path.rstrip("/")


@pytest.mark.parametrize(
    ("value", "words"),
    [("255.255.255.255", "must be a unicast address"), ("::ffff:10.0.0.1", "must be an IPv4 address as it is")],
)
def test_an_address_is_one_of_a_host(value: str, words: str) -> None:
    (problem,) = problems(spec(f"[{{name: a, address: '{value}'}}]", "{address: 10.0.0.9}"))
    assert problem.startswith(f"spec.nodes[0].address: {words}")


def test_an_address_names_no_interface() -> None:
    (problem,) = problems(spec("[{name: a, address: 'fd00::1%eth0'}]", "{address: 'fd00::9'}"))
    assert problem.startswith("spec.nodes[0].address: must not specify an interface")


@pytest.mark.parametrize(
    "value", ["a\n", "a b", "a_b", "a.b", "a-", "ä", "a" * 64, "a;b", "$(id)", "a\0b"]
)  # fmt: skip
def test_a_node_name_needs_no_quoting(value: str) -> None:
    (problem,) = problems(
        spec(f"[{{name: {yaml.safe_dump(value, default_style=chr(34)).strip()}, address: 10.0.0.1}}]")
    )
    assert problem.startswith("spec.nodes[0].name: must be a DNS label")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "kind: RegistryCluster\n", "x.yaml is not valid YAML: line 3, column 1: key kind is set twice"),
        (spec(more="  vip: {address: 10.0.0.8}\n"), "key vip is set twice"),
        (spec(NODES.replace("name: b", "name: b, name: bb")), "key name is set twice"),
        ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>', while parsing a flow sequence"),
        (
            "a: !!python/object/apply:os.system [id]",
            "line 1, column 4: the tag !!python/object/apply:os.system is not supported",
        ),
        ("? [a, b]\n: c\n", "line 1, column 3: a key must be plain text"),
        ("a: b\nc: d\0e\n", "x.yaml is not valid YAML: line 2, column 5: the character U+0000 is not allowed"),
        ("\x1b[32ma: b\n", "line 1, column 1: the character U+001B is not allowed"),
        ("spec: {address: {{ .Values.ip }}}\n", "column 18: a key must be plain text; a template ({{ ... }}) must be"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "line 3, column 3: merge keys (<<) are not supported"),
        ("a: \0", "line 1, column 4: the character U+0000 is not allowed"),
        ('a: b\nc: "\\U00110000"', "line 2: an escape, or a number in a directive, is out of range"),
        ('c: "\\UFFFFFFFF"', "line 1: an escape, or a number in a directive, is out of range"),
        (f"%YAML 1.{'1' * 5000}\n---\na: b\n", "line 1: an escape, or a number in a directive, is out of range"),
        ('a: {b: "x\\uD800"}', "line 1, column 8: it has one half of a surrogate pair (U+D800)"),
        ('"x\\uDFFF": b', "line 1, column 1: it has one half of a surrogate pair (U+DFFF)"),
        ("a: 1\n--- \nb: 2\n", "line 2, column 1: a second document starts here; the file must have only one"),
        ("a:\n\tb: 1\n", "line 2, column 1: a tab cannot be used here; use spaces"),
        ("a: [*]\n", "line 1, column 6: * begins an alias; put text that begins with it in quotes"),
        ('a: "b\nc: d\n', "found unexpected end of stream, while scanning a quoted scalar that starts in line 1"),
        ("a: [b,\n  c\n", "while parsing a flow sequence that starts in line 1"),
        ("a: " + "[" * 21 + "]" * 21, "it is nested deeper than 20 levels"),
        ("[" * 100_000, "it is nested deeper than 20 levels"),
        ("a: [" + "1," * 10_000 + "]", "it has more than 10000 values"),
        *(
            (f"a: !!{tag}\n", f"the tag !!{tag.split()[0]} is not supported")
            for tag in (
                "int x",
                "float zz",
                "bool zz",
                "map x",
                "timestamp 2001-99-99",
                "binary x",
                "null x",
                "set {x}",
            )
        ),
    ],
)
def test_what_yaml_would_swallow_or_run_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        parse(text, "x.yaml")
    assert words in caught.value.message
    assert caught.value.code == "ConfigNotYaml"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "does not contain a mapping"),
        ("text", "does not contain a mapping"),
        ("7", "does not contain a mapping"),
    ],
)
def test_a_file_without_a_mapping_shows_the_smallest_one(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml")
    assert caught.value.message == f"x.yaml {wrong}"
    assert config.SMALLEST in caught.value.hint


def test_no_file_shows_the_smallest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(None)
    assert caught.value.code == "ConfigMissing"
    assert config.SMALLEST in caught.value.message
    Path("cluster.yaml").write_text(config.SMALLEST)
    assert load(None) == load(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file or directory"),
        (b"\xff\xfe", "it is UTF-16; save it as UTF-8"),
        (b"kind: \xe4\n", "it is not UTF-8 text: byte 0xe4 in line 1"),
        (b"#" * 300_000, "it is larger than 256 KiB"),
    ],
    ids=["missing", "UTF-16", "Latin-1", "large"],
)
def test_an_unreadable_file_is_said_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.message == f"cannot read {path}: {words}"
    assert caught.value.code == "ConfigUnreadable"
    assert caught.value.hint


@pytest.mark.parametrize("path", ["/dev/zero", "/"])
def test_what_is_no_file_is_said_so_at_once(path: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read {path}: "):
        load(Path(path))


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + config.SMALLEST.encode())
    assert load(tmp_path / "x") == parse(config.SMALLEST, "x")


# ---- what YAML and pydantic would make something else of -------------------------------------------------------------

PORT = "spec.ssh.port: must be a whole number in decimal, without leading zeros or quotes"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("ssh: {port: 022}", f"{PORT} (it is '022')"),
        ("ssh: {port: 1:30}", f"{PORT} (it is '1:30')"),
        ("ssh: {port: 0x16}", f"{PORT} (it is '0x16')"),
        ("ssh: {port: 22.0}", f"{PORT} (it is '22.0')"),
        ("ssh: {port: true}", f"{PORT} (it is true)"),
        ('ssh: {port: "22"}', f"{PORT} (it is '22')"),
        ("ssh: {port: 99999999999999999999}", f"{PORT} (it is '99999999999999999999')"),
        ("ssh: {identity_file: x}", "spec.ssh.identity_file: unknown key, did you mean identityFile?"),
        ("ssh: {user: 7}", "spec.ssh.user: must be text: put it in quotes (it is 7)"),
        ('ssh: {user: "a\\0b"}', "spec.ssh.user: must be a user name without blanks that does not start with a dash "
                                 "(it is 'a\\x00b')"),
        ("ssh: {knownHostsFile: ~nosuchuser/x}", "spec.ssh.knownHostsFile: starts with the home directory of a user "
                                                 "who does not exist on this host (it is '~nosuchuser/x')"),
        ("proxy: {anonymousPull: no}", "spec.proxy.anonymousPull: must be true or false, without quotes (it is 'no')"),
        ('proxy: {anonymousPull: "true"}', "spec.proxy.anonymousPull: must be true or false, without quotes "
                                           "(it is 'true')"),
        ("proxy: {anonymousPull: 0}", "spec.proxy.anonymousPull: must be true or false, without quotes (it is 0)"),
        ("proxy:", "spec.proxy: has no value"),
        ("replacement: {after: 30}", "spec.replacement.after: must be a duration in days, hours or minutes, such as "
                                     "90d, 12h or 30m (it is 30)"),
        ('proxy: {"": 1}', 'spec.proxy."": unknown key; known keys: anonymousPull'),
        ('proxy: {"a\\nb": 1}', "spec.proxy.a\\nb: unknown key; known keys: anonymousPull"),
        ("mirrors: quay.io", "spec.mirrors: must be a list (it is 'quay.io')"),
        ("containerd: {sandboxImage: 'not an image!!'}",
         "spec.containerd.sandboxImage: must be the full name of an image with a tag or digest, such as "
         "registry.k8s.io/pause:3.10.2 (it is 'not an image!!')"),
        (f"ssh: {{user: {'u' * 257}}}", "spec.ssh.user: must be a user name without blanks that does not start with a "
                                        f"dash (it is '{'u' * 79} ... (257 characters))"),
        *((f"kubernetes: {{controlPlaneEndpoint: '{value}'}}",
           "spec.kubernetes.controlPlaneEndpoint: must be HOST:PORT of the API servers, such as api.example:6443 or "
           f"[fd00::10]:6443 (it is '{value}')")
          for value in ("https://api:6443", "host:99999", "not a host", "api:", "api:06443", "fd00::1:6443",
                        "[10.0.0.1]:1", "[fe80::1%eth0]:6443", "[::ffff:10.0.0.1]:6443",
                        "10.0.0.256", "[fd00::1", "api_1:6443", "")),
    ],
)  # fmt: skip
def test_nothing_is_taken_for_something_else(more: str, problem: str) -> None:
    assert problems(spec(more=f"  {more}\n")) == [problem]


@pytest.mark.parametrize(
    "value", ["api.example:6443", "api", "10.0.0.1:6443", "10.0.0.1", "[fd00::10]:6443", "[fd00::10]"]
)
def test_endpoints_of_the_api(value: str) -> None:
    parsed = parse(spec(more=f"  kubernetes: {{controlPlaneEndpoint: '{value}'}}\n"), "x")
    assert parsed.spec.kubernetes.control_plane_endpoint == value


def test_numbers_in_names_are_text() -> None:
    nodes = "[{name: 1e3, address: 10.0.0.1}, {name: no, address: 10.0.0.2}, {name: 2001-01-01, address: 10.0.0.3}]"
    assert [node.name for node in parse(spec(nodes), "x").spec.nodes] == ["1e3", "no", "2001-01-01"]


def test_a_file_that_an_api_server_wrote() -> None:
    text = spec().replace(
        "spec:",
        """metadata:
  name: registry
  namespace: default
  uid: 0e0a2b1c-0000-0000-0000-000000000000
  resourceVersion: "77"
  generation: 3
  creationTimestamp: "2030-01-02T03:04:05Z"
  labels: {a: b}
  annotations: {c: d}
  managedFields: [{manager: kubectl, fieldsV1: {"f:spec": {}}}]
status: {conditions: []}
spec:""",
    )
    assert parse(text, "x") == parse(spec(), "x")
    assert problems(text.replace("name: registry", "nam: registry")) == [
        "metadata.nam: unknown key, did you mean name?"
    ]


# ---- all at once ----------------------------------------------------------------------------------------------------


def test_a_mistake_in_a_value_hides_no_contradiction() -> None:
    nodes = (
        "[{name: a, address: 10.0.0.1}, {name: a, address: 10.0.0.9}, {name: C, address: 10.0.0.1}, "
        "{name: d, address: 'fd00::1'}, {name: e, address: 10.0.0.5}, {name: f, address: 10.0.0.6}]"
    )
    assert problems(spec(nodes, more="  ssh: {port: 0}\n  mirrors: [quay.io, 7, quay.io]\n")) == [
        "spec.nodes[2].name: must be a DNS label: lower-case letters, digits and dashes, at most 63 characters "
        "(RFC 1123) "
        "(it is 'C')",
        "spec.ssh.port: must be at least 1 (it is 0)",
        "spec.mirrors[1]: must be text: put it in quotes (it is 7)",
        "spec.nodes: must have at most 5 items (it has 6)",
        "spec.nodes[1].name: a is also the name of nodes[0]",
        "spec.nodes[1].address: 10.0.0.9 is the VIP, which must not be a node address",
        "spec.nodes[2].address: 10.0.0.1 is also nodes[0].address",
        "spec.nodes[3].address: must be of the same address family as nodes[0].address",
        "spec.mirrors[2]: quay.io is also mirrors[0]",
    ]


def test_a_value_that_is_wrong_in_itself_contradicts_nothing() -> None:
    nodes = DUAL.replace("'fd00::2'", "'fd00::zz'").replace("name: a", "name: A").replace("name: b", "name: A")
    found = problems(spec(nodes, "{address: 10.0.0.9, secondaryAddress: 'fd00::9'}"))
    assert [problem.split(":")[0] for problem in found] == [
        "spec.nodes[0].name", "spec.nodes[1].name", "spec.nodes[1].secondaryAddress",
    ]  # fmt: skip


@pytest.mark.parametrize("nodes", ["7", "{}", "[7, [], null]", "[{name: {}, address: []}]"])
def test_no_contradiction_is_looked_for_where_nothing_fits(nodes: str) -> None:
    assert problems(spec(nodes))


def test_hundreds_of_problems_are_not_all_told() -> None:
    found = problems(spec(more="".join(f"  key{n}: 1\n" for n in range(500))))
    assert len(found) == 51
    assert found[-1] == "and 450 more"


def test_a_large_value_is_not_echoed() -> None:
    (problem,) = problems(spec(more=f"  frontend: {{type: {'x' * 200_000}}}\n"))
    assert problem == f"spec.frontend.type: must be 'zot' or 'distribution' (it is '{'x' * 79} ... (200000 characters))"
    (problem,) = problems(spec(more=f"  {'k' * 1000}: 1\n"))
    assert problem.startswith(f"spec.{'k' * 60}: unknown key; known keys: nodes, vip, ")


def test_a_value_gives_no_orders_to_the_terminal() -> None:
    (problem,) = problems(spec(more='  frontend: {type: "\\e[31mzot\\u202e"}\n'))
    assert problem.endswith(r"(it is '\x1b[31mzot\u202e')")


def test_a_wrong_file_says_where_to_look() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(spec(more="  color: red\n"), "x.yaml")
    assert "config print-defaults" in caught.value.hint
    assert caught.value.message.startswith("x.yaml is not valid\n")


def test_a_bomb_of_aliases_is_no_work() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    assert len(problems(spec(more="".join(f"  {line}\n" for line in lines)))) == 10
    assert problems(spec("&n [*n]")) == ["spec.nodes[0]: must be a mapping of keys to values (it is a list)"]


def test_the_smallest_file_gets_these_defaults() -> None:
    spec = parse(config.SMALLEST, "x").spec
    assert (spec.frontend.type, spec.backend.type, spec.proxy.anonymous_pull) == ("zot", "garage", True)
    assert spec.highly_available
    assert spec.data_directory == "/var/lib/kubeadm-registry"
    assert spec.mirrors == ("registry.k8s.io", "docker.io", "quay.io", "ghcr.io")


def test_the_router_id_follows_from_the_address_unless_given() -> None:
    """A value outside of what hand-made setups take, and in VRRP's range for every address."""
    ids = {parse(spec(vip=f"{{address: 10.0.1.{last}}}"), "x").spec.vip.router_id for last in range(1, 255)}
    assert min(ids) > 51
    assert max(ids) <= 255
    assert len(ids) == 127
    assert parse(spec(vip="{address: 10.0.0.9, virtualRouterID: 7}"), "x").spec.vip.router_id == 7


def test_ssh_settings_of_a_node_go_over_those_for_all() -> None:
    assert Ssh(port=2222).over(Ssh(user="ada", port=22)) == Ssh(user="ada", port=2222)


ED = "AAAAC3NzaC1lZDI1NTE5AAAAIGMrCtjlPWTdQgxFk1zFHbBDJlLZM8OJ1eSqcWlAQVfh"


@pytest.mark.parametrize(
    "key",
    [f"ssh-ed25519 {ED} root@cp-1", ED, f"ssh-dss {ED}", f"ssh-ed25519  {ED}", f"ssh-ed25519 {ED[:-1]}",
     "ssh-ed25519 " + "A" * 2048],
)  # fmt: skip
def test_a_host_key_is_one_of_sshd_without_a_comment(key: str) -> None:
    def given(value: str) -> str:
        return config.SMALLEST.replace("10.0.0.11}", f"10.0.0.11, hostKey: {value}}}")

    assert config.parse(given(f"ssh-ed25519 {ED}"), "cluster.yaml").spec.nodes[0].host_key == f"ssh-ed25519 {ED}"
    with pytest.raises(ConfigError, match=r"spec\.nodes\[0\]\.hostKey"):
        config.parse(given(key), "cluster.yaml")


def test_the_model_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(config.SMALLEST, "x").spec.data_directory = "/srv"  # type: ignore[misc]


def test_every_field_says_what_it_is_for() -> None:
    """The reference is generated from these words."""
    silent: list[str] = []
    todo: list[type[BaseModel]] = [RegistryCluster]
    seen: set[type[BaseModel]] = set()
    while todo:
        model = todo.pop()
        seen.add(model)
        for name, declared in model.model_fields.items():
            below = model_of(declared.annotation)
            if below is not None:
                todo.append(below)
            elif not declared.description and name not in ("api_version", "kind"):
                silent.append(f"{model.__name__}.{name}")
    assert len(seen) > 8
    assert not silent


# ---- what is written is read back -------------------------------------------------------------------------------

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True).filter(lambda name: name != "local")
words = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12)
ports = st.integers(1, 65535)


def optional(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({}, optional=fields)


users = st.from_regex(r"[!-,.-~][!-~]{0,9}", fullmatch=True)
files = words.filter(lambda path: not path.startswith("~"))
ssh = optional(user=users, port=ports, identityFile=files, knownHostsFile=files)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, object]:
    count = draw(st.sampled_from([1, 3, 4, 5]))
    names = draw(st.lists(labels, min_size=count, max_size=count, unique=True))
    numbers = draw(st.lists(st.integers(1, 65000), min_size=count + 1, max_size=count + 1, unique=True))
    first, second = draw(st.permutations(["10.7.{}.{}", "fd00::{:x}:{:x}"]))
    dual, dual_vip = draw(st.booleans()), draw(st.booleans())
    pairs = [(first.format(*divmod(n, 256)), second.format(*divmod(n, 256))) for n in numbers]

    def addresses(pair: tuple[str, str], both: bool) -> dict[str, object]:
        return {"address": pair[0], **({"secondaryAddress": pair[1]} if both else {})}

    nodes = [
        {"name": name, **addresses(pair, dual), **draw(optional(ssh=ssh))}
        for name, pair in zip(names, pairs[1:], strict=True)
    ]
    vip = {
        **addresses(pairs[0], dual and dual_vip),
        **draw(optional(name=labels.map("vip.{}".format), virtualRouterID=st.integers(1, 255))),
    }
    hosts = st.builds("{}.{}:{}".format, labels, labels, ports)
    endpoints = st.builds("api.{}:{}".format, labels, ports)
    more = draw(
        optional(
            ssh=ssh,
            frontend=optional(type=st.sampled_from(["zot", "distribution"])),
            proxy=optional(anonymousPull=st.booleans()),
            mirrors=st.lists(hosts, max_size=4, unique=True),
            containerd=optional(sandboxImage=st.just("registry.k8s.io/pause:3.10")),
            kubernetes=optional(version=st.just("v1.36.3"), controlPlaneEndpoint=endpoints),
            dataDirectory=st.from_regex(r"/srv(/[a-z0-9_-]{1,5}){1,3}", fullmatch=True),
        )
    )
    return {
        "apiVersion": "kubeadm-registry.dev/v1alpha1",
        "kind": "RegistryCluster",
        **draw(optional(metadata=optional(name=labels))),
        "spec": {"nodes": nodes, "vip": vip, **more},
    }


@settings(max_examples=60, deadline=None)
@given(documents())
def test_what_is_dumped_is_parsed_to_the_same(document: dict[str, object]) -> None:
    cluster = parse(yaml.safe_dump(document), "x.yaml")
    assert parse(dump(cluster), "y.yaml") == cluster


def test_a_file_whose_name_begins_like_a_home_is_that_file() -> None:
    """pathlib drops the ./ and then expands what is left."""
    assert whoami.expand("./~root/key") == Path("./~root/key")
    text = config.SMALLEST + "  ssh: {identityFile: ./~0}\n"
    assert config.parse(text, "x").spec.ssh.identity_file == "./~0"
