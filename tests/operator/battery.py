"""Objects for both doors: the file that the workstation reads, and the API server. A table, a case a line.

Each case is CLUSTER, or DUAL, with something changed. What *both* do is the third column; DIFFERENT lists the few where
they do not do the same, with the reason, and no case is there that a file may say and the API server refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import yaml

from kubeadm_registry import config
from kubeadm_registry.printable import shown

Object = dict[str, Any]
Change = Callable[[Object], None]

CLUSTER: Object = yaml.safe_load(config.SMALLEST)


def node(number: int, **more: Any) -> Object:
    """A node that CLUSTER has not."""
    return {"name": f"cp-{number}", "address": f"10.0.0.1{number}", **more}


def put(path: str, value: Any) -> Change:
    """Set what stands at *path*, where ``nodes.0.name`` means an item of a list."""

    def change(found: Object) -> None:
        *way, last = path.split(".")
        here: Any = found
        for part in way:
            here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        if isinstance(here, list):
            here[int(last) : int(last) + 1] = [value]
        else:
            here[last] = value

    return change


def drop(path: str) -> Change:
    """Take away what stands at *path*."""

    def change(found: Object) -> None:
        *way, last = path.split(".")
        here: Any = found
        for part in way:
            here = here[int(part)] if isinstance(here, list) else here[part]
        del here[int(last) if isinstance(here, list) else last]

    return change


def both(*changes: Change) -> Change:
    """One after the other."""

    def change(found: Object) -> None:
        for each in changes:
            each(found)

    return change


def changed(base: Object, change: Change) -> Object:
    """*base* with *change*, itself untouched."""
    found = copy.deepcopy(base)
    change(found)
    return found


class Case(NamedTuple):
    """What is changed, whether it is taken, and a part of what the API server says if not."""

    title: str
    taken: bool
    change: Change
    says: str = ""


N = "spec.nodes"
DIR = "spec.dataDirectory"
K = "spec.kubernetes"
END = f"{K}.controlPlaneEndpoint"
IMAGE = "spec.containerd.sandboxImage"
DUAL = changed(
    CLUSTER,
    both(
        *(put(f"{N}.{index}.secondaryAddress", f"fd00::1{index + 1}") for index in range(3)),
        put("spec.vip.secondaryAddress", "fd00::10"),
    ),
)
SIX = changed(
    CLUSTER,
    both(
        *(put(f"{N}.{index}.address", f"fd00::1{index + 1}") for index in range(3)), put("spec.vip.address", "fd00::10")
    ),
)


#: As large as every limit lets it be: what rules may cost is bounded when they run, too.
LARGEST = changed(
    CLUSTER,
    both(
        put(N, [
            {
                "name": f"{'x' * 62}{i}", "address": f"fd00:1111:2222:3333:4444:5555:6666:777{i}",
                "secondaryAddress": f"192.168.100.10{i}", "hostKey": f"ssh-rsa {'A' * 2040}",
                "ssh": {"user": "u" * 256, "port": 65535, "identityFile": "i" * 4096, "knownHostsFile": "k" * 4096},
            }
            for i in range(5)
        ]),
        put("spec.vip", {
            "address": "fd00:1111:2222:3333:4444:5555:6666:8888", "secondaryAddress": "192.168.100.200",
            "name": ".".join([*["v" * 62] * 3, "v" * 60]), "virtualRouterID": 255,
        }),
        put("spec.ssh", {"user": "u" * 256, "identityFile": "i" * 4096, "knownHostsFile": "k" * 4096}),
        put("spec.mirrors", [f"{'.'.join(['m' * 61] * 4)}.m{i:02}" for i in range(64)]),
        put(IMAGE, f"a.b/{'c' * 379}:{'d' * 128}"),
        put(END, ".".join(["e" * 62] * 4) + ":65535"),
        put(DIR, "/" + "d" * 199),
    ),
)  # fmt: skip


def _nothing(_: Object) -> None:
    pass


def _values(path: str, taken: bool, *values: Any, says: str = "") -> Sequence[Case]:
    return [Case(f"{path}: {shown(str(value))}", taken, put(path, value), says) for value in values]


NODES = [
    Case("the smallest file", True, _nothing),
    Case("one node", True, put(N, [node(1)])),
    Case("two nodes", False, put(N, [node(1), node(2)]), "spec.nodes: Invalid value: two nodes cannot form a quorum"),
    Case("four nodes", True, put(f"{N}.3", node(4))),
    Case("five nodes", True, both(put(f"{N}.3", node(4)), put(f"{N}.4", node(5)))),
    Case("six nodes", False, put(N, [node(i) for i in range(1, 7)]), "Too many: 6: must have at most 5 items"),
    Case("no nodes", False, put(N, []), "spec.nodes in body should have at least 1 items"),
    Case("nodes not given", False, drop(N), "spec.nodes: Required value"),
    Case("nodes without a value", False, put(N, None), "spec.nodes: Required value"),
    Case("nodes as a mapping", False, put(N, {"cp-1": "10.0.0.11"})),
    Case("a node without a name", False, drop(f"{N}.0.name"), "spec.nodes[0].name: Required value"),
    Case("a node without an address", False, drop(f"{N}.0.address"), "spec.nodes[0].address: Required value"),
    Case("a name twice", False, put(f"{N}.1.name", "cp-1"), 'spec.nodes[1]: Duplicate value: {"name":"cp-1"}'),
    Case("an address twice", False, put(f"{N}.1.address", "10.0.0.11"), "10.0.0.11 is the address of a node twice"),
    Case("a second address twice", False, both(*(put(f"{N}.{i}.secondaryAddress", "fd00::1") for i in (0, 1)))),
    Case("a node that has one address twice", False, put(f"{N}.0.secondaryAddress", "10.0.0.11")),
    *_values(f"{N}.0.name", True, "a", "1", "0-9", "x" * 63),
    *_values(f"{N}.0.name", False, "CP-1", "a.b", "a_b", "-a", "a-", "", "x" * 64, "ä", "a b", "a\n", 7, None),
    Case("a node called local", False, put(f"{N}.0.name", "local"), "must not be 'local', which is reserved for"),
    *_values(f"{N}.0.address", True, "10.0.0.1", "169.254.1.1", "192.168.255.255", "240.0.0.1"),
    *_values(f"{N}.0.address", False, "cp-1.example", "10.0.0", "10.0.0.011", "10.0.0.256", " 10.0.0.1", "", 10,
             "10.0.0.1/24", says=""),
    *_values(f"{N}.0.address", False, "127.0.0.1", "0.0.0.0", "224.0.0.18", "255.255.255.255",
             says="must be a unicast address, not a loopback, multicast or unspecified one"),
    Case("families mixed", False, put(f"{N}.1.address", "fd00::1"),
         "spec.nodes: Invalid value: the address of every node must be of the same address family as nodes[0].address"),
    Case("a misspelled key in a node", False, put(f"{N}.0.adress", "10.0.0.1"), 'unknown field "spec.nodes[0].adress"'),
]  # fmt: skip

IPV6 = [
    Case("IPv6", True, _nothing),
    Case("an address in another spelling", True, put(f"{N}.0.address", "FD00:0:0::0011")),
    Case("an address with IPv4 at its end", True, put(f"{N}.0.address", "fd00::10.0.0.1")),
    Case("an address twice in two spellings", False, put(f"{N}.1.address", "fd00:0::11"), "fd00::11 is the address"),
    Case("the VIP in two spellings", False, put("spec.vip.address", "fd00:0::12"), "fd00::12 is the VIP, which"),
    *_values(f"{N}.0.address", False, "::1", "::", "ff02::12", says="must be a unicast address"),
    *_values(f"{N}.0.address", False, "fe80::1", says="must not be link-local, because containerd cannot specify"),
    *_values(f"{N}.0.address", False, "fe80::1%eth0", "fd00::1%eth0", "[fd00::1]", "::ffff:10.0.0.1", "fd00::1::2",
             "fd00:1:2:3:4:5:6:7:8", "1::2:3:4:5:6:7:8", "fd00::12345"),
    Case("a VIP of the other family", False, put("spec.vip.address", "10.0.0.10"), "spec.vip.address: Invalid value"),
]  # fmt: skip

DUAL_STACK = [
    Case("dual-stack", True, _nothing),
    Case("dual-stack nodes, one VIP", True, drop("spec.vip.secondaryAddress")),
    Case("a second address of the same family", False, put(f"{N}.2.secondaryAddress", "10.0.1.3"),
         "spec.nodes[2].secondaryAddress: Invalid value"),
    Case("a second VIP of the same family", False, put("spec.vip.secondaryAddress", "10.0.0.20"),
         "spec.vip.secondaryAddress: Invalid value"),
    Case("a second VIP without second addresses", False, drop(f"{N}.1.secondaryAddress"),
         "requires a secondaryAddress on every node"),
    Case("the second VIP is a node's", False, put("spec.vip.secondaryAddress", "fd00::13"), "fd00::13 is the VIP"),
    Case("a second address that is none", False, put(f"{N}.0.secondaryAddress", "")),
    Case("a second address that is null", False, both(put(f"{N}.0.secondaryAddress", None)),
         "requires a secondaryAddress on every node"),
]  # fmt: skip

REST = [
    Case("no spec", False, drop("spec"), "spec: Required value"),
    Case("no VIP", False, drop("spec.vip"), "spec.vip: Required value"),
    Case("the VIP is a node's", False, put("spec.vip.address", "10.0.0.12"), "10.0.0.12 is the VIP, which must not be"),
    Case("an unknown key in spec", False, put("spec.color", "red"), 'unknown field "spec.color"'),
    Case("an unknown key in metadata", False, put("metadata.owner", "me"), 'unknown field "metadata.owner"'),
    Case("labels and annotations", True, put("metadata.labels", {"a": "b"})),
    Case("a status in the file", True, put("status", {"conditions": []})),
    Case("another kind", False, put("kind", "RegistryClusters")),
    Case("a version to come", False, put("apiVersion", "kubeadm-registry.dev/v1beta1"), "no matches for kind"),
    *_values("metadata.name", True, "site-7", "x" * 63),
    *_values("metadata.name", False, "a.b", "x" * 64, "Registry", "-x"),
    *_values("spec.vip.name", True, "registry.example", "registry", "a" * 63 + ".b"),
    *_values("spec.vip.name", False, "Registry.example", "a..b", "a_b", "", ".".join(["a" * 60] * 5), "a" * 64,
             "10.0.0.9"),
    Case("the VIP has the name of a node", False,
         both(put(f"{N}.1.name", "registry"), put("spec.vip.name", "registry")), "must not be the name of a node"),
    *_values("spec.vip.virtualRouterID", True, 1, 255),
    *_values("spec.vip.virtualRouterID", False, 0, 256, -1, "51", True),
    *_values("spec.ssh", True, {}, {"user": None}, {"port": 22, "user": "admin", "identityFile": "~/.ssh/id"}),
    *_values("spec.ssh.port", False, 0, 65536, "22"),
    *_values("spec.ssh.user", True, "a.b@c", "Ä", "u" * 256),
    *_values("spec.ssh.user", False, "", "a b", "-oProxyCommand=x", "a\tb", "u" * 257),
    *_values("spec.ssh.knownHostsFile", True, "/etc/ssh/known hosts", "f" * 4096),
    *_values("spec.ssh.knownHostsFile", False, "", "a\nb", "f" * 4097),
    *_values(f"{N}.0.ssh.port", False, 70000),
    *_values(f"{N}.0.hostKey", True, f"ssh-ed25519 {'A' * 68}", "ecdsa-sha2-nistp256 AAAA+/8=", "ssh-rsa AAAAaa=="),
    *_values(f"{N}.0.hostKey", False, "", "AAAA", "ssh-dss AAAA", "ssh-ed25519 AAAA root@cp-1", "ssh-ed25519  AAAA",
             "ssh-ed25519 AAAAA", f"ssh-rsa {'A' * 2044}", "ssh-ed25519 AAAA\n"),
    *_values("spec.backend", True, {}, {"type": "garage"}),
    *_values("spec.backend.type", False, "minio", "", says='supported values: "garage"'),
    *_values("spec.frontend.type", True, "zot", "distribution"),
    *_values("spec.frontend.type", False, "harbor", says='supported values: "zot", "distribution"'),
    *_values("spec.proxy.anonymousPull", True, True, False),
    *_values("spec.proxy.anonymousPull", False, "yes", 0),
    *_values("spec.mirrors", True, [], ["*"], ["localhost:5000", "a.b:65535"], [f"r{i}.example" for i in range(64)]),
    *_values("spec.mirrors", False, ["docker.io", "docker.io"], says='spec.mirrors[1]: Duplicate value: "docker.io"'),
    *_values("spec.mirrors", False, [f"r{i}.example" for i in range(65)], "docker.io", [7], [None]),
    *(case for host in ("docker", "https://quay.io", "Quay.io", "quay.io/x", "", "a.b:", "a.b:123456", "a.b:0",
                        "a.b:65536", "**")
      for case in _values("spec.mirrors", False, [host], says="must be a registry host as used in image names")),
    *_values("spec.replacement", True, {}, {"mode": "Automatic", "after": "1m"}, {"after": "99999d"}),
    *_values("spec.replacement.mode", False, "Never", "", says='supported values: "Propose", "Automatic"'),
    *_values("spec.replacement.after", False, "0m", "30", "30s", "", "1h30m", 30),
    *_values(IMAGE, True, "registry.k8s.io/pause:3.10.2", "localhost/a:b", "localhost:5000/a/b@sha256:" + "0" * 64,
             "a.b/c:d@sha256:" + "f" * 64, "a:1/b__c:D"),
    *_values(IMAGE, False, "pause", "pause:3.10", "registry.k8s.io/pause", "library/pause:3", "a.b/C:d",
             "a.b/c@sha256:0", "a.b/c:" + "d" * 129, "", "a.b/" + "c" * 512 + ":d", "a.b/c:d\n"),
    *_values(f"{K}.version", True, "v1.36.3", "1.36.3", "v0.0.0"),
    *_values(f"{K}.version", False, "1.36", "v1.36.3-rc.1", "v01.1.1", "v12345.1.1", "latest", ""),
    *_values(END, True, "api.example:6443", "api", "10.0.0.1:6443", "10.0.0.1", "[fd00::10]:6443", "[fd00::10]",
             "a:65535", ".".join(["a" * 62] * 4) + ":65535", "1.2.3.a"),
    *_values(END, False, "https://api:6443", "host:65536", "host:99999", "host:123456", "not a host", "api:",
             "api:06443", "api:0", "fd00::1:6443", "[10.0.0.1]:1", "10.0.0.256", "1.2.3", "[fd00::1", "api_1:6443", "",
             "[]", "[]:1", "[fe80::1%eth0]:6443", "[::ffff:10.0.0.1]:6443", "Api:1", "a" * 64,
             ".".join(["a" * 60] * 5), "[fd00::1]x"),
    *_values(DIR, True, "/srv", "/mnt/disk", "/data/", "/opt/registry", "/var/lib/etcd2", "/srv//a/./b/.", "//srv/x",
             "/srv/...", "/vara", "/lostfound", "/var/...", "/" + "a" * 199),
    *_values(DIR, False, "/", "//", "/.", "/srv/../etc", "/srv/a b", "/srv/$(id)", "/srv/a\nb", "relative", "",
             "/srv/{x}", "/" + "a" * 200, "/srv/.."),
    *_values(DIR, False, "/opt/kubeadm-registry/data", "//opt/kubeadm-registry", "/opt",
             says="must not be, contain or be in a directory that belongs to kubeadm-registry"),
    *_values(DIR, False, "/etc/kubeadm-registry/x", "/proc/1", "/usr", "/var", "/var/lib", "/var/./lib/",
             "/var//lib/dpkg/x",
             says="must not be, contain or be in a directory that belongs to the operating system"),
    *_values(DIR, False, "/run/x", "/tmp", "/var/tmp/x", "/root", "/home/ann", "/var/lib/etcd",
             "/./var/lib/kubelet/."),
]  # fmt: skip

#: Where random changes of texts begin, by the field; a test makes thousands of each.
TEXTS = {
    "metadata.name": ("registry",),
    f"{N}.0.name": ("cp-1", "local"),
    f"{N}.0.address": ("10.0.0.1", "169.254.1.1", "127.0.0.1", "255.255.255.255", "0.0.0.0"),
    f"{N}.0.ssh.user": ("admin", "-x"),
    f"{N}.0.ssh.identityFile": ("/root/.ssh/id",),
    f"{N}.0.hostKey": ("ssh-ed25519 AAAAaa==", "ecdsa-sha2-nistp384 AAAA+/8="),
    "spec.vip.address": ("10.0.0.10", "10.0.0.11"),
    "spec.vip.name": ("registry.example", "a-b.c"),
    "spec.mirrors.0": ("docker.io", "a:5000", "*", "localhost:5000", "a.b:123"),
    DIR: ("/srv/x", "/var/./lib//etcd", "/opt/../x", "/var/lib/", "/tmp/.", "/lib64", "//var//tmp/x", "/."),
    IMAGE: ("registry.k8s.io/pause:3.10.2", "localhost/a:b", "a:5000/b__c/d:e", "a.b/c@sha256:" + "0" * 64),
    f"{K}.version": ("v1.36.3",),
    "spec.replacement.after": ("30m", "12h"),
    END: ("api.example:6443", "[fd00::10]:6443", "10.0.0.1:65535", "[::1.2.3.4]", "a-b.c:1", "1.2.3.4"),
}
TEXTS_IPV6 = {
    f"{N}.0.address": ("fd00::1", "::ffff:1.2.3.4", "1:2:3:4:5:6:7:8", "fe80::1", "ff02::1", "::1.2.3.4", "2001:db8::"),
    "spec.vip.address": ("fd00::10", "FD00:0::11"),
}

#: Those with CLUSTER, IPv6 and two addresses for each node.
CREATE = [
    *((CLUSTER, case) for case in (*NODES, *REST)),
    *((SIX, case) for case in IPV6),
    *((DUAL, case) for case in DUAL_STACK),
    (LARGEST, Case("the largest object", True, _nothing)),
]

#: Taken by the API server, and refused by the file, which guards against slips of the pen. None means something else to
#: one of them: what is null is not there, and 22.0 is 22.
DIFFERENT = [
    Case("a section without a value", True, put("spec.ssh", None)),
    Case("a list without a value", True, put("spec.mirrors", None)),
    Case("a choice without a value", True, put("spec.frontend", {"type": None})),
    Case("a whole number with a point", True, put("spec.ssh", {"port": 22.0})),
    Case("a home that only another host has", True, put("spec.ssh", {"identityFile": "~nosuchuser/key"})),
]

#: From CLUSTER to CLUSTER with a change, by an update; pydantic sees one object and takes all that are valid.
UPDATE = [
    Case("nothing", True, _nothing),
    Case("the order of nodes", True, put(N, CLUSTER["spec"]["nodes"][::-1])),
    Case("a fourth node", True, put(f"{N}.3", node(4))),
    Case("two more nodes", True, both(put(f"{N}.3", node(4)), put(f"{N}.4", node(5)))),
    Case("a node replaced", True, put(f"{N}.2", node(4))),
    Case("two nodes replaced", False, both(put(f"{N}.1", node(4)), put(f"{N}.2", node(5))), "one at a time"),
    Case("three to two", False, drop(f"{N}.2"), "a registry of three or more nodes keeps at least three"),
    Case("three to one", False, put(N, [node(1)]), "a registry of three or more nodes keeps at least three"),
    Case("an address of a node", False, put(f"{N}.2.address", "10.0.0.33"),
         'spec.nodes[2].address: Invalid value: "10.0.0.33": cannot be changed in place; the storage on the other'),
    Case("addresses exchanged", False,
         both(put(f"{N}.1.address", "10.0.0.13"), put(f"{N}.2.address", "10.0.0.12")), "cannot be changed in place"),
    Case("a second address", True, put(f"{N}.0.secondaryAddress", "fd00::1")),
    Case("the data directory", False, put(DIR, "/srv/x"), "the images would stay in the old directory; restore"),
    Case("the data directory in another spelling", True, put(DIR, "/var//lib/./kubeadm-registry/")),
    Case("mirrors", True, put("spec.mirrors", ["*"])),
    Case("who may pull", True, put("spec.proxy", {"anonymousPull": False})),
    Case("SSH", True, put("spec.ssh", {"user": "admin"})),
    Case("the version of Kubernetes", True, put(f"{K}.version", "v1.37.0")),
    Case("a name for the VIP", True, put("spec.vip.name", "registry.example")),
]  # fmt: skip
FROM_ONE = [
    Case("one to three", False, put(N, CLUSTER["spec"]["nodes"]), "a registry of one node cannot grow"),
    Case("the one node replaced", True, put(N, [node(4)])),
]
