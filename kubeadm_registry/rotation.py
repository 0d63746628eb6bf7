"""Which secrets follow which while certificates and credentials are exchanged: pure functions of ``Secrets``.

What both sides of a connection must know is replaced in stages, each of which is stored on all nodes before the next
begins. Of a CA:

=========  ==============  ==================  =====================================================
stage      signs           is trusted          the next stage may begin when
=========  ==============  ==================  =====================================================
"" (none)  the CA          the CA
trust      the CA          both                every known host trusts both
issue      the next CA     both                every node serves a certificate of the next CA
remove     the next CA     the next CA alone   every known host has only that
=========  ==============  ==================  =====================================================

For another kind read "is used" and "is accepted". A login at the proxies needs no stage for what is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from kubeadm_registry import pki
from kubeadm_registry.secrets import FORMER, LEFT, LOGINS, NEXT, RETIRED, Secrets, fresh

Stage = Literal["", "trust", "issue", "remove"]
Kind = Literal["ca", "s3", "heartbeat", "admin"]
#: The secrets that are replaced together; by the first both sides know which they use.
_PARTS: Mapping[Kind, tuple[str, ...]] = {
    "ca": ("ca_certificate", "ca_key"), "s3": ("s3_key_id", "s3_secret_key"), "heartbeat": ("heartbeat_key",),
    "admin": ("admin_token",),
}  # fmt: skip


def stage(secrets: Secrets, kind: Kind = "ca") -> Stage:
    """How far the replacement of that *kind* is; empty if none is going on."""
    return stage_in(secrets.overlap, kind)


def stage_in(overlap: Mapping[str, str], kind: Kind = "ca") -> Stage:
    """The same of what is being exchanged by one node's file, in which other secrets may be missing."""
    name, *_ = _PARTS[kind]
    found: dict[str, Stage] = {NEXT: "trust", FORMER: "issue", RETIRED: "remove"}
    return next((one for prefix, one in found.items() if f"{prefix}{name}" in overlap), "")


def advance(secrets: Secrets, cluster: str, kind: Kind = "ca", *, left: bool = False) -> Secrets:
    """The secrets of the stage after that of *secrets*; a new CA is made for the cluster called *cluster*.

    *left*: nodes have left, which must be told so by the key that they have.
    """
    now, overlap, parts = stage(secrets, kind), dict(secrets.overlap), _PARTS[kind]
    name = parts[0]
    if now == "trust":
        overlap[f"{FORMER}{name}"] = getattr(secrets, name)
        following: dict[str, Any] = {part: overlap.pop(f"{NEXT}{part}") for part in parts}
        return replace(secrets, overlap=overlap, **following)
    if now == "issue":
        overlap[f"{RETIRED}{name}"] = before = overlap.pop(f"{FORMER}{name}")
        if kind == "heartbeat":
            overlap.pop(LEFT, "")
            overlap |= {LEFT: "\n".join((before, *secrets.left_heartbeat_keys))} if left else {}
    elif now == "remove":
        del overlap[f"{RETIRED}{name}"]
    else:
        overlap |= {f"{NEXT}{part}": value for part, value in zip(parts, _made(kind, cluster), strict=True)}
    return replace(secrets, overlap=overlap)


def _made(kind: Kind, cluster: str) -> tuple[str, ...]:
    if kind == "ca":
        ca = pki.make_ca(cluster)
        return ca.certificate, ca.key
    return tuple(fresh(part) for part in _PARTS[kind])


def request(secrets: Secrets, current: Mapping[str, str], targets: Collection[str]) -> Secrets:
    """*secrets* that ask for new certificates on the nodes *targets*, where *current* has the fingerprint of each.

    A request that is not fulfilled everywhere goes on, with the nodes in it that were not asked before: who has got a
    new certificate by it gets no second one.
    """
    open_ = {name: one for name, one in secrets.renewal.items() if current.get(name) == one}
    asked = secrets.renewal if open_ else {}
    return replace(secrets, renewal={**{name: current[name] for name in targets if name in current}, **asked})


def overlapping(secrets: Secrets) -> tuple[str, ...]:
    """The roles whose password of before is accepted as well."""
    return tuple(role for role in LOGINS if len(secrets.passwords(role)) > 1)


def rotate(secrets: Secrets, roles: Iterable[str]) -> Secrets:
    """New passwords for *roles*; those of now are accepted as well."""
    overlap, changes = dict(secrets.overlap), dict[str, Any]()
    for role in roles:
        name = f"{role}_password"
        overlap[f"{FORMER}{name}"] = secrets.password(role)
        changes[name] = fresh(name)
    return replace(secrets, overlap=overlap, **changes)


def finish(secrets: Secrets, roles: Iterable[str]) -> Secrets:
    """The passwords of before are accepted no longer for *roles*."""
    gone = {f"{FORMER}{role}_password" for role in roles}
    return replace(secrets, overlap={name: one for name, one in secrets.overlap.items() if name not in gone})
