"""Single values of the cluster file: what each kind of text must look like, and in which form it is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from kubeadm_registry import paths
from kubeadm_registry.addresses import ip, is_ipv6
from kubeadm_registry.oci import references

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL.pattern}(\.{_LABEL.pattern})*")
_UPSTREAM = re.compile(rf"{_DNS_NAME.pattern}(:[0-9]{{1,5}})?")
#: Longer than any that somebody wants, short enough for what Garage puts below it.
_LONGEST_PATH = 200
#: In the list of upstream registries: all of them, whatever their names.
EVERY_REGISTRY = "*"
_LAST_PORT = 65535


def label(value: str) -> str:
    """The name *value*. Raises ValueError if it is none."""
    if not _LABEL.fullmatch(value):
        raise ValueError("must be a DNS label: lower-case letters, digits and dashes, at most 63 characters (RFC 1123)")
    return value


def _node_name(value: str) -> str:
    if value == "local":
        raise ValueError("must not be 'local', which is reserved for the node itself")
    return label(value)


def _dns_name(value: str) -> str:
    if not _DNS_NAME.fullmatch(value):
        raise ValueError("must be a DNS name in lower case (RFC 1123)")
    return value


def _upstream(value: str) -> str:
    if value == EVERY_REGISTRY:
        return value
    if not _UPSTREAM.fullmatch(value) or ("." not in value and ":" not in value):
        raise ValueError('must be a registry host as used in image names, such as registry.k8s.io, or "*" for all')
    return value


def address(value: str) -> str:
    """The address *value* in its one spelling. Raises ValueError if it can be no server's."""
    parsed = ip(value)
    if parsed is None:
        raise ValueError("must be an IPv4 or IPv6 address, not a name, because DNS may not be available yet")
    if parsed.is_unspecified or parsed.is_loopback or parsed.is_multicast:
        raise ValueError("must be a unicast address, not a loopback, multicast or unspecified one")
    if is_ipv6(value) and parsed.is_link_local:
        raise ValueError("must not be link-local, because containerd cannot specify the interface")
    if "%" in value:
        raise ValueError("must not specify an interface, which only link-local addresses have")
    return str(parsed)


#: Directories in which, and below which, no data may be kept, by the reason. Others hold their own things there.
_RESERVED = {
    "belongs to kubeadm-registry and is removed by reset": (paths.OPT,),
    "belongs to the operating system": (
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/lost+found", "/proc", "/sbin", "/sys",
        "/usr", "/var/cache", "/var/lib/apt", "/var/lib/dbus", "/var/lib/dnf", "/var/lib/dpkg", "/var/lib/private",
        "/var/lib/rpm", "/var/lib/systemd", "/var/log", "/var/mail", "/var/spool",
    ),
    "is emptied at boot or earlier": ("/run", "/tmp", "/var/lock", "/var/run", "/var/tmp"),  # noqa: S108
    "is hidden from the services (ProtectHome= in systemd.exec(5))": ("/home", "/root"),
    "belongs to Kubernetes or a container runtime": (
        "/opt/cni", "/opt/containerd", "/var/lib/calico", "/var/lib/cilium", "/var/lib/cni", "/var/lib/containerd",
        "/var/lib/containers", "/var/lib/cri-dockerd", "/var/lib/crio", "/var/lib/docker", "/var/lib/etcd",
        "/var/lib/k0s", "/var/lib/kube-proxy", "/var/lib/kubelet", "/var/lib/rancher", "/var/openebs",
    ),
}  # fmt: skip


def unsuitable(directory: str) -> str | None:
    """Why the absolute path *directory* must not be the data directory; None if it may be."""
    wanted = PurePosixPath(directory)
    for why, trees in _RESERVED.items():
        for tree in map(PurePosixPath, trees):
            if wanted.is_relative_to(tree):
                return f"must not be in {tree}, which {why}"
            if tree.is_relative_to(wanted):
                return f"must not be {wanted}, which contains {tree}; use a separate directory, such as {_such(wanted)}"
    return None


def _such(above: PurePosixPath) -> str:
    """A good place near *above*."""
    return str(above / "registry") if len(above.parts) > 1 else "/srv/registry"


def reserved() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The directories that no data may be in, each group after its reason."""
    yield from _RESERVED.items()


def _data_directory(value: str) -> str:
    path = PurePosixPath("/" + value.lstrip("/"))  # POSIX lets two slashes at the start mean something else
    plain = value.startswith("/") and ".." not in path.parts and re.fullmatch(r"[A-Za-z0-9/._-]+", value)
    if not plain or not path.name or len(value) > _LONGEST_PATH:
        raise ValueError(
            f"must be an absolute path of letters, digits, dots, dashes and underscores, without '..', "
            f"at most {_LONGEST_PATH} characters"
        )
    if (flaw := unsuitable(str(path))) is not None:
        raise ValueError(flaw)
    return str(path)


def _whole(value: object) -> object:
    # pydantic takes "022", true and 22.0 for whole numbers. Text is what a list of nodes has.
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str) and re.fullmatch(r"-?(?:0|[1-9][0-9]{0,8})", value):
        number = int(value)
    if number is None:
        raise ValueError("must be a whole number in decimal, without leading zeros")
    return number


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("must be true or false, without quotes")
    return value


def _version(value: str) -> str:
    if not re.fullmatch(r"v?(0|[1-9][0-9]{0,3})(\.(0|[1-9][0-9]{0,3})){2}", value):
        raise ValueError("must be a version of three numbers, such as v1.36.3")
    return value


def _endpoint(value: str) -> str:
    found = re.fullmatch(r"(?:\[(?P<ipv6>[^]]*)\]|(?P<host>[^]:[]*))(?::(?P<port>[1-9][0-9]{0,4}))?", value)
    host = found and (found["ipv6"] or found["host"])
    good = found and host and int(found["port"] or 1) <= _LAST_PORT
    if not good or is_ipv6(str(host)) != bool(found and found["ipv6"]) or not _names_a_host(str(host)):
        raise ValueError("must be HOST:PORT of the API servers, such as api.example:6443 or [fd00::10]:6443")
    return value


def _names_a_host(text: str) -> bool:
    looks_like_ipv4 = re.fullmatch(r"[0-9.]+", text) is not None
    return ip(text) is not None or (not looks_like_ipv4 and _DNS_NAME.fullmatch(text) is not None)


def _image(value: str) -> str:
    if references.parse(value) is None:
        raise ValueError("must be the full name of an image with a tag or digest, such as registry.k8s.io/pause:3.10.2")
    return value


def _user(value: str) -> str:
    if not value or re.search(r"[\x00-\x20\x7f]", value) or value.startswith("-"):
        raise ValueError("must be a user name without blanks that does not start with a dash")
    return value


def _own_file(value: str) -> str:
    if not value or re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("must be the path of a file on this host")
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError("starts with the home directory of a user who does not exist on this host") from None
    return value


Label = Annotated[str, AfterValidator(label)]
NodeName = Annotated[str, AfterValidator(_node_name)]
DnsName = Annotated[str, AfterValidator(_dns_name)]
Upstream = Annotated[str, AfterValidator(_upstream)]
Address = Annotated[str, AfterValidator(address)]
DataDirectory = Annotated[str, AfterValidator(_data_directory)]
Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Version = Annotated[str, AfterValidator(_version)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
ImageName = Annotated[str, AfterValidator(_image)]
UserName = Annotated[str, AfterValidator(_user)]
OwnFile = Annotated[str, AfterValidator(_own_file)]
