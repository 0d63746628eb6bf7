"""Single values of the cluster file: what each kind of text must look like, and in which form it is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from kubeadm_registry import paths
from kubeadm_registry.addresses import ip, is_ipv6
from kubeadm_registry.config.rules import OnServer, Rule, matches, matching
from kubeadm_registry.oci import references

# Patterns are written for Python and for RE2, by which API servers match: no look-ahead, no group by number.
_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LONGEST_LABEL = 63
_LABEL_TEXT = "must be a DNS label: lower-case letters, digits and dashes, at most 63 characters (RFC 1123)"
_DNS_NAME = rf"{_LABEL}(\.{_LABEL})*"
_LONGEST_DNS_NAME = 253
#: containerd looks for a registry in a directory named ``HOST_PORT_``, and the name of one has 255 bytes at most.
_LONGEST_VIP_NAME = 255 - len(f"_{paths.REGISTRY_PORT}_")
_DNS_NAME_TEXT = f"must be a DNS name in lower case (RFC 1123), at most {_LONGEST_VIP_NAME} characters"
_NO_ADDRESS_TEXT = "must be a name, not an address"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_UPSTREAM = rf"{_DNS_NAME}(:{_PORT})?"
_UPSTREAM_TEXT = 'must be a registry host as used in image names, such as registry.k8s.io, or "*" for all'
#: The longest text of an IPv6 address, with an IPv4 address at its end (INET6_ADDRSTRLEN without the NUL).
_LONGEST_ADDRESS = 45
#: Longer than any that somebody wants, short enough for what Garage puts below it.
_LONGEST_PATH = 200
#: In the list of upstream registries: all of them, whatever their names.
EVERY_REGISTRY = "*"
#: From which kubeadm has its images.
KUBERNETES_REGISTRY = "registry.k8s.io"
LAST_PORT = 65535


def label(value: str) -> str:
    """The name *value*. Raises ValueError if it is none."""
    if not re.fullmatch(_LABEL, value):
        raise ValueError(_LABEL_TEXT)
    return value


#: The rule of ``label`` on the name of an object, which a schema can see at its root only.
OBJECT_NAME = Rule(matches(_LABEL, "self.metadata.name"), _LABEL_TEXT, field=".metadata.name")
_RESERVED_NAME = "must not be 'local', which is reserved for the node itself"


def _node_name(value: str) -> str:
    if value == "local":
        raise ValueError(_RESERVED_NAME)
    return label(value)


def _is_dns_name(value: str) -> bool:
    return len(value) <= _LONGEST_DNS_NAME and re.fullmatch(_DNS_NAME, value) is not None


def _dns_name(value: str) -> str:
    if not _is_dns_name(value) or len(value) > _LONGEST_VIP_NAME:
        raise ValueError(_DNS_NAME_TEXT)
    if ip(value) is not None:
        raise ValueError(_NO_ADDRESS_TEXT)
    return value


def _upstream(value: str) -> str:
    if value == EVERY_REGISTRY:
        return value
    good = len(value) <= _LONGEST_DNS_NAME and re.fullmatch(_UPSTREAM, value)
    if not good or ("." not in value and ":" not in value):
        raise ValueError(_UPSTREAM_TEXT)
    return value


_ADDRESS_TEXT = "must be an IPv4 or IPv6 address, not a name, because DNS may not be available yet"
_UNICAST_TEXT = "must be a unicast address, not a loopback, multicast or unspecified one"
_LINK_LOCAL_TEXT = "must not be link-local, because containerd cannot specify the interface"
_BROADCAST = "255.255.255.255"


def address(value: str) -> str:
    """The address *value* in its one spelling. Raises ValueError if it can be no server's."""
    parsed = ip(value)
    if parsed is None:
        raise ValueError(_ADDRESS_TEXT)
    if parsed.is_unspecified or parsed.is_loopback or parsed.is_multicast or value == _BROADCAST:
        raise ValueError(_UNICAST_TEXT)
    if is_ipv6(value) and parsed.is_link_local:
        raise ValueError(_LINK_LOCAL_TEXT)
    if "%" in value:
        raise ValueError("must not specify an interface, which only link-local addresses have")
    if _is_mapped(value):
        raise ValueError("must be an IPv4 address as it is, without ::ffff: in front")
    return str(parsed)


def _is_mapped(value: str) -> bool:
    """Whether *value* is an IPv4-mapped address (RFC 4291, section 2.5.5.2): in no packet, and not isIP()."""
    parsed = ip(value)
    return isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None


_ADDRESS_RULES = (
    Rule("isIP(self)", _ADDRESS_TEXT),
    Rule("!isIP(self) || ip(self).isGlobalUnicast() || ip(self).isLinkLocalUnicast()", _UNICAST_TEXT),
    Rule("!isIP(self) || ip(self).family() == 4 || !ip(self).isLinkLocalUnicast()", _LINK_LOCAL_TEXT),
)


#: Directories in which, and below which, no data may be kept, by the reason. Others hold their own things there.
_RESERVED = {
    "belongs to kubeadm-registry and is removed by reset": (paths.OPT, paths.RETENTION_STATE, paths.PULLS_STATE),
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


_DIRECTORY = r"/[A-Za-z0-9/._-]*"
_DIRECTORY_TEXT = (
    "must be an absolute path of letters, digits, dots, dashes and underscores, without '..', "
    f"at most {_LONGEST_PATH} characters"
)


def _data_directory(value: str) -> str:
    path = PurePosixPath("/" + value.lstrip("/"))  # POSIX lets two slashes at the start mean something else
    plain = re.fullmatch(_DIRECTORY, value) and ".." not in path.parts
    if not plain or not path.name or len(value) > _LONGEST_PATH:
        raise ValueError(_DIRECTORY_TEXT)
    if (flaw := unsuitable(str(path))) is not None:
        raise ValueError(flaw)
    return str(path)


def parts_of(path: str) -> str:
    """CEL for the parts of *path* (CEL), which PurePosixPath has as well: without empty ones and ``.``."""
    return f"{path}.split('/').filter(part, part != '' && part != '.')"


def _reserved_rules() -> Iterator[Rule]:
    """A rule for each reason why a directory may hold no data, in patterns: lists of parts would be too costly."""
    slash = r"/+(\./+)*"
    for why, trees in _RESERVED.items():
        paths = [PurePosixPath(tree) for tree in trees]
        above = {parent for path in paths for parent in path.parents if parent.name}
        inside, around = (
            "|".join(sorted(slash.join(map(re.escape, path.parts[1:])) for path in found)) for found in (paths, above)
        )
        ends = [rf"({inside})(/.*)?", *([rf"({around})(/+\.?)*"] if around else [])]
        yield Rule(
            "!" + matches(f"{slash}({'|'.join(ends)})"),
            f"must not be, contain or be in a directory that {why}: {', '.join(trees)}",
        )


_DIRECTORY_RULES = (
    Rule(f"{matches(_DIRECTORY)} && !self.split('/').exists(part, part == '..') && size({parts_of('self')}) > 0",
         _DIRECTORY_TEXT),
    *_reserved_rules(),
)  # fmt: skip


def _whole(value: object) -> object:
    # pydantic takes "022", true and 22.0 for whole numbers. An API server takes no text for a number.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number in decimal, without leading zeros or quotes")
    return value


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("must be true or false, without quotes")
    return value


_VERSION = r"v?(0|[1-9][0-9]{0,3})(\.(0|[1-9][0-9]{0,3})){2}"
_LONGEST_VERSION = 15
_VERSION_TEXT = "must be a version of three numbers, such as v1.36.3"


def _version(value: str) -> str:
    if not re.fullmatch(_VERSION, value):
        raise ValueError(_VERSION_TEXT)
    return value


_PORT = "(:[1-9][0-9]{0,4})?"
_IN_BRACKETS = rf"\[[0-9A-Fa-f:.]*\]{_PORT}"
_BARE = rf"[^\]\[:]+{_PORT}"
_LONGEST_ENDPOINT = _LONGEST_DNS_NAME + len(":65535")
_ENDPOINT_TEXT = "must be HOST:PORT of the API servers, such as api.example:6443 or [fd00::10]:6443"


def _endpoint(value: str) -> str:
    if not _is_endpoint(value):
        raise ValueError(_ENDPOINT_TEXT)
    return value


def _is_endpoint(value: str) -> bool:
    host, _, port = value.rpartition(":") if re.search(r":[0-9]+\Z", value) else (value, "", "1")
    if re.fullmatch(_IN_BRACKETS, value):
        host = host.strip("[]")
        named = is_ipv6(host) and not _is_mapped(host)
    else:
        named = re.fullmatch(_BARE, value) is not None and _names_a_host(host)
    return named and int(port) <= LAST_PORT


def _names_a_host(text: str) -> bool:
    looks_like_ipv4 = re.fullmatch(r"[0-9.]+", text) is not None
    return ip(text) is not None or (not looks_like_ipv4 and _is_dns_name(text))


def _endpoint_rule() -> Rule:
    inside, host = "self.find('[0-9A-Fa-f:.]+')", "self.find('^[^:]*')"
    ipv6 = f"isIP({inside}) && ip({inside}).family() == 6"
    named = f"(isIP({host}) || (!{host}.matches('^[0-9.]+$') && {matches(_DNS_NAME, host)}))"
    other = f"{matches(_BARE)} && size({host}) <= {_LONGEST_DNS_NAME} && {named}"
    port = f"(!self.matches(':[0-9]{{1,5}}$') || int(self.find('[0-9]+$')) <= {LAST_PORT})"
    # In brackets the port comes after a digit of the address, so the address is what is found first.
    return Rule(f"({matches(_IN_BRACKETS)} ? ({ipv6}) : ({other})) && {port}", _ENDPOINT_TEXT)


_IMAGE_TEXT = "must be the full name of an image with a tag or digest, such as registry.k8s.io/pause:3.10.2"


def _image(value: str) -> str:
    if references.parse(value) is None:
        raise ValueError(_IMAGE_TEXT)
    return value


#: The last two parts of what references.parse() asks: a host, not the first part of a path; and a tag or a digest.
_IMAGE_RULE = Rule(
    f"{matches(references.FULL)} && self.matches('^(localhost|[^/]*[.:][^/]*)/') && self.matches(':[^/]*$')",
    _IMAGE_TEXT,
)

#: LOGIN_NAME_MAX and PATH_MAX of Linux (limits.h), so that a schema has a bound.
_LONGEST_USER, _LONGEST_FILE = 256, 4096
#: As authorized_keys and known_hosts have a public key (sshd(8)), without a comment.
_HOST_KEY = (
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) "
    r"([A-Za-z0-9+/]{4})+([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
)
_LONGEST_HOST_KEY = 2048
_HOST_KEY_TEXT = (
    "must be a public key of its sshd, as in /etc/ssh/ssh_host_ed25519_key.pub: its type and the key, without a comment"
)


def _host_key(value: str) -> str:
    if len(value) > _LONGEST_HOST_KEY or not re.fullmatch(_HOST_KEY, value):
        raise ValueError(_HOST_KEY_TEXT)
    return value


_USER = r"[^\x00-\x20\x7f-][^\x00-\x20\x7f]*"
_USER_TEXT = "must be a user name without blanks that does not start with a dash"
_FILE = r"[^\x00-\x1f\x7f]+"
_FILE_TEXT = "must be the path of a file on this host"
#: Key of a validation's context: set where the document is not read on the workstation that it was written for.
ELSEWHERE = "elsewhere"


def _user(value: str) -> str:
    if not re.fullmatch(_USER, value) or len(value) > _LONGEST_USER:
        raise ValueError(_USER_TEXT)
    return value


def _own_file(value: str, info: ValidationInfo) -> str:
    if not re.fullmatch(_FILE, value) or len(value) > _LONGEST_FILE:
        raise ValueError(_FILE_TEXT)
    if (info.context or {}).get(ELSEWHERE):
        return value  # the homes of this host's users say nothing of it
    if not value.startswith("~"):
        return value  # Path makes ~name of ./~name
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError("starts with the home directory of a user who does not exist on this host") from None
    return value


_IS_LABEL = matching(_LABEL, _LABEL_TEXT)
_IS_UPSTREAM = Rule(
    f"self == '{EVERY_REGISTRY}' || ({matches(_UPSTREAM)} && (self.contains('.') || self.contains(':')))",
    _UPSTREAM_TEXT,
)
Label = Annotated[str, AfterValidator(label), OnServer(_IS_LABEL, maxLength=_LONGEST_LABEL)]
NodeName = Annotated[
    str,
    AfterValidator(_node_name),
    OnServer(_IS_LABEL, Rule("self != 'local'", _RESERVED_NAME), maxLength=_LONGEST_LABEL),
]
DnsName = Annotated[
    str,
    AfterValidator(_dns_name),
    OnServer(matching(_DNS_NAME, _DNS_NAME_TEXT), Rule("!isIP(self)", _NO_ADDRESS_TEXT), maxLength=_LONGEST_VIP_NAME),
]
Upstream = Annotated[str, AfterValidator(_upstream), OnServer(_IS_UPSTREAM, maxLength=_LONGEST_DNS_NAME)]
Address = Annotated[str, AfterValidator(address), OnServer(*_ADDRESS_RULES, maxLength=_LONGEST_ADDRESS)]
DataDirectory = Annotated[str, AfterValidator(_data_directory), OnServer(*_DIRECTORY_RULES, maxLength=_LONGEST_PATH)]
Whole = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Version = Annotated[
    str, AfterValidator(_version), OnServer(matching(_VERSION, _VERSION_TEXT), maxLength=_LONGEST_VERSION)
]
Endpoint = Annotated[str, AfterValidator(_endpoint), OnServer(_endpoint_rule(), maxLength=_LONGEST_ENDPOINT)]
ImageName = Annotated[str, AfterValidator(_image), OnServer(_IMAGE_RULE, maxLength=references.LONGEST)]
HostKey = Annotated[
    str, AfterValidator(_host_key), OnServer(matching(_HOST_KEY, _HOST_KEY_TEXT), maxLength=_LONGEST_HOST_KEY)
]
UserName = Annotated[str, AfterValidator(_user), OnServer(matching(_USER, _USER_TEXT), maxLength=_LONGEST_USER)]
OwnFile = Annotated[str, AfterValidator(_own_file), OnServer(matching(_FILE, _FILE_TEXT), maxLength=_LONGEST_FILE)]
