"""The cluster file: what is wrong in it is said all at once, by path, before anything is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kubeadm_registry import config
from kubeadm_registry.config import RegistryCluster, Ssh, dump, load, model_of, parse
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
            "apiVersion: input should be 'kubeadm-registry.dev/v1alpha1' (it is 'v1')",
            "kind: input should be 'RegistryCluster' (it is 'Pod')",
        ],
    ),
    "misspelled keys": (
        spec("[{name: a, adress: 10.0.0.1}]", "{address: 10.0.0.9, color: red}", "  frontent: {type: zot}\n"),
        [
            "spec.nodes[0].address: is missing",
            "spec.nodes[0].adress: unknown key, did you mean address?",
            "spec.vip.color: unknown key; known here: address, secondaryAddress, name, virtualRouterID",
            "spec.frontent: unknown key, did you mean frontend?",
        ],
    ),
    "misspelled above": (
        HEAD.replace("kind", "kinds") + "spec: {nodes: [{name: a, address: 10.0.0.1}], vip: {address: 10.0.0.9}}",
        ["kind: is missing", "kinds: unknown key, did you mean kind?"],
    ),
    "a snake_case key": (
        spec(more="  data_directory: /srv\n  vips: 1\n"),
        ["spec.vips: unknown key, did you mean vip?"],
    ),
    "names": (
        spec("[{name: A, address: 10.0.0.1}]", more="metadata: {name: -x}\n"),
        [
            "metadata.name: must be a DNS label: lower-case letters, digits and dashes, 63 at most (RFC 1123) "
            "(it is '-x')",
            "spec.nodes[0].name: must be a DNS label: lower-case letters, digits and dashes, 63 at most (RFC 1123) "
            "(it is 'A')",
        ],
    ),
    "a node called local": (
        spec(NODES.replace("name: a", "name: local")),
        ["spec.nodes[0].name: must not be 'local', by which each server calls itself (it is 'local')"],
    ),
    "no nodes": (
        spec("[]"),
        ["spec.nodes: must have at least 1, and has 0"],
    ),
    "two nodes": (
        spec("[{name: a, address: 10.0.0.1}, {name: b, address: 10.0.0.2}]"),
        ["spec.nodes: two servers cannot outvote a lost one: give three to five, or one to try things out"],
    ),
    "six nodes": (
        spec("[" + ", ".join(f"{{name: n{i}, address: 10.0.0.{i}}}" for i in range(1, 7)) + "]"),
        ["spec.nodes: must have at most 5, and has 6"],
    ),
    "what is given twice": (
        spec(
            "[{name: a, address: 10.0.0.1}, {name: a, address: 10.0.0.1}, {name: c, address: 10.0.0.3}]",
            more="  mirrors: [quay.io, quay.io]\n",
        ),
        [
            "spec.nodes[1].name: a is the name of nodes[0] as well",
            "spec.nodes[1].address: 10.0.0.1 is nodes[0].address as well",
            "spec.mirrors: names a registry twice",
        ],
    ),
    "an address given twice in two spellings": (
        spec(NODES.replace("10.0.0.", "fd00::").replace("fd00::3", "'fd00:0:0::1'"), "{address: 'fd00::9'}"),
        ["spec.nodes[2].address: fd00::1 is nodes[0].address as well"],
    ),
    "the VIP is a node's": (
        spec(vip="{address: 10.0.0.2}"),
        ["spec.nodes[1].address: 10.0.0.2 is the VIP, which belongs to no server"],
    ),
    "the second VIP is a node's": (
        spec(DUAL, "{address: 10.0.0.9, secondaryAddress: 'fd00::3'}"),
        ["spec.nodes[2].secondaryAddress: fd00::3 is the VIP, which belongs to no server"],
    ),
    "families mixed": (
        spec("[{name: a, address: 10.0.0.1}, {name: b, address: 'fd00::2'}, {name: c, address: 10.0.0.3, "
             "secondaryAddress: 10.0.1.3}]", "{address: 'fd00::9', secondaryAddress: 'fd00::8'}"),
        [
            "spec.nodes[1].address: must be of the same family as nodes[0].address",
            "spec.nodes[2].secondaryAddress: must be of the other family than address",
            "spec.vip.address: must be of the same family as nodes[0].address",
            "spec.vip.secondaryAddress: must be of the other family than vip.address",
            "spec.vip.secondaryAddress: needs a secondaryAddress at every node",
        ],
    ),
    "a second VIP without second addresses": (
        spec(DUAL.replace(", secondaryAddress: 'fd00::2'", ""), "{address: 10.0.0.9, secondaryAddress: 'fd00::9'}"),
        ["spec.vip.secondaryAddress: needs a secondaryAddress at every node"],
    ),
    "addresses of no server": (
        spec("[{name: a, address: cp-1.example}, {name: b, address: 127.0.0.1}, {name: c, address: 'fe80::1'}]",
             "{address: 224.0.0.18}"),
        [
            "spec.nodes[0].address: must be an IPv4 or IPv6 address, not a name: names need a DNS that may not be "
            "there yet (it is 'cp-1.example')",
            "spec.nodes[1].address: must be the address of a server, not a loopback, multicast or unspecified one "
            "(it is '127.0.0.1')",
            "spec.nodes[2].address: must not be link-local: containerd cannot name the interface (it is 'fe80::1')",
            "spec.vip.address: must be the address of a server, not a loopback, multicast or unspecified one "
            "(it is '224.0.0.18')",
        ],
    ),
    "choices and ranges": (
        spec(vip="{address: 10.0.0.9, virtualRouterID: 256}",
             more="  frontend: {type: harbor}\n  ssh: {port: 0, user: ''}\n  proxy: {anonymousPull: perhaps}\n"),
        [
            "spec.vip.virtualRouterID: input should be less than or equal to 255 (it is 256)",
            "spec.ssh.user: string should have at least 1 character (it is '')",
            "spec.ssh.port: input should be greater than or equal to 1 (it is 0)",
            "spec.frontend.type: input should be 'zot' or 'distribution' (it is 'harbor')",
            "spec.proxy.anonymousPull: input should be a valid boolean, unable to interpret input (it is 'perhaps')",
        ],
    ),
    "mirrors": (
        spec(more="  mirrors: [docker, 'https://quay.io', Quay.io, 'quay.io/x', 'localhost:5000']\n"),
        [
            f"spec.mirrors[{i}]: must be the host of a registry as it stands in image names, such as registry.k8s.io "
            f"(it is '{value}')" for i, value in enumerate(("docker", "https://quay.io", "Quay.io", "quay.io/x"))
        ],
    ),
    "directories": (
        spec(more="  dataDirectory: srv\n"),
        ["spec.dataDirectory: must be an absolute path of letters, digits, dots, dashes and underscores, without "
         "'..', 200 characters at most (it is 'srv')"],
    ),
    "a list where a mapping belongs": (
        spec(vip="[10.0.0.9]"),
        ["spec.vip: input should be a valid dictionary or instance of Vip"],
    ),
    "versions of Kubernetes": (
        spec(more="  kubernetes: {version: '1.36'}\n"),
        ["spec.kubernetes.version: string should match pattern '^v?[0-9]+\\.[0-9]+\\.[0-9]+$' (it is '1.36')"],
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
        ("/run/kubeadm-registry/data", "must not be in /run, which is emptied when the server starts"),
        ("/run/x", "must not be in /run"),
        ("/tmp", "must not be in /tmp"),  # noqa: S108
        ("/var/tmp/x", "must not be in /var/tmp"),  # noqa: S108
        ("/root", "must not be in /root, which is hidden from the services"),
        ("/home/ann/registry", "must not be in /home"),
        ("/proc/1", "must not be in /proc"),
        ("/usr/local/share/registry", "must not be in /usr"),
        ("/var/lib/etcd", "must not be in /var/lib/etcd, which belongs to Kubernetes or a container runtime"),
        ("/etc/kubernetes", "must not be in /etc"),
        ("/var/lib/containerd/x/", "must not be in /var/lib/containerd"),
        ("/opt", "must not be /opt, which holds /opt/kubeadm-registry: name a directory of its own, such as "
                 "/opt/registry"),
        ("/var/./lib", "must not be /var/lib, which holds "),
        ("/" + 70 * "abc", "must be an absolute path"),
    ],
)  # fmt: skip
def test_a_data_directory_is_nobody_elses(path: str, words: str) -> None:
    """What is there would be given other owners, hidden from the services, or removed by reset with the images."""
    (problem,) = problems(spec(more=f"  dataDirectory: {path}\n"))
    assert problem.startswith(f"spec.dataDirectory: {words}")
    assert problem.endswith(f"(it is '{path}')")


@pytest.mark.parametrize("path", ["/srv", "/mnt/disk", "/data", "/opt/registry", "/var/lib/etcd2", "/var/registry/"])
def test_a_data_directory_of_its_own(path: str) -> None:
    assert parse(spec(more=f"  dataDirectory: {path}\n"), "x").spec.data_directory == path.rstrip("/")


def test_an_address_names_no_interface() -> None:
    (problem,) = problems(spec("[{name: a, address: 'fd00::1%eth0'}]", "{address: 'fd00::9'}"))
    assert problem.startswith("spec.nodes[0].address: must not name an interface")


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
        (HEAD + "kind: RegistryCluster\n", "x.yaml is not YAML: key kind is given twice"),
        (spec(more="  vip: {address: 10.0.0.8}\n"), "key vip is given twice"),
        (spec(NODES.replace("name: b", "name: b, name: bb")), "key name is given twice"),
        ("a: [1", "x.yaml is not YAML: while parsing a flow sequence"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("? [a, b]\n: c\n", "a key must be a plain word"),
    ],
)
def test_what_yaml_would_swallow_or_run_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="not YAML") as caught:
        parse(text, "x.yaml")
    assert words in caught.value.message
    assert caught.value.code == "ConfigNotYaml"


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "text", "7"])
def test_a_file_without_a_mapping_shows_the_smallest_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml holds no mapping") as caught:
        parse(text, "x.yaml")
    assert config.SMALLEST in caught.value.hint


def test_no_file_shows_the_smallest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(None)
    assert caught.value.code == "ConfigMissing"
    assert config.SMALLEST in caught.value.message
    Path("cluster.yaml").write_text(config.SMALLEST)
    assert load(None) == load(tmp_path / "cluster.yaml")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not text"])
def test_an_unreadable_file_is_said_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot read {path}") as caught:
        load(path)
    assert caught.value.code == "ConfigUnreadable"


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


ssh = optional(user=words, port=ports, identityFile=words, knownHostsFile=words)


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
        **draw(optional(name=labels, virtualRouterID=st.integers(1, 255))),
    }
    hosts = st.builds("{}.{}:{}".format, labels, labels, ports)
    more = draw(
        optional(
            ssh=ssh,
            frontend=optional(type=st.sampled_from(["zot", "distribution"])),
            proxy=optional(anonymousPull=st.booleans()),
            mirrors=st.lists(hosts, max_size=4, unique=True),
            containerd=optional(sandboxImage=words),
            kubernetes=optional(version=st.just("v1.36.3"), controlPlaneEndpoint=words),
            dataDirectory=st.from_regex(r"/srv(/[a-z0-9_-]{1,5}){1,3}", fullmatch=True),
        )
    )
    return {
        "apiVersion": config.API_VERSION,
        "kind": "RegistryCluster",
        **draw(optional(metadata=optional(name=labels))),
        "spec": {"nodes": nodes, "vip": vip, **more},
    }


@settings(max_examples=60, deadline=None)
@given(documents())
def test_what_is_dumped_is_parsed_to_the_same(document: dict[str, object]) -> None:
    cluster = parse(yaml.safe_dump(document), "x.yaml")
    assert parse(dump(cluster), "y.yaml") == cluster
