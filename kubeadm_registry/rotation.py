"""Which secrets follow which while certificates and credentials are exchanged: pure functions of ``Secrets``.

A CA is replaced in four stages, each of which is stored on all nodes before the next begins:

=========  ==============  ==================  =====================================================
stage      signs           is trusted          the next stage may begin when
=========  ==============  ==================  =====================================================
"" (none)  the CA          the CA
TRUST      the CA          both                every known host trusts both
ISSUE      the next CA     both                every node serves a certificate of the next CA
REMOVE     the next CA     the next CA alone   every known host has only that
=========  ==============  ==================  =====================================================
"""

from __future__ import annotations

import secrets as random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Literal

from kubeadm_registry import pki
from kubeadm_registry.secrets import FORMER, FORMER_CA, NEXT_CA, NEXT_CA_KEY, RETIRED_CA, Secrets

Stage = Literal["", "trust", "issue", "remove"]
#: What can be exchanged with an overlap: the logins at the proxies.
LOGINS = ("push", "pull", "retention")


def stage(secrets: Secrets) -> Stage:
    """How far the replacement of the CA is; empty if none is going on."""
    if NEXT_CA in secrets.overlap:
        return "trust"
    if FORMER_CA in secrets.overlap:
        return "issue"
    return "remove" if RETIRED_CA in secrets.overlap else ""


def advance(secrets: Secrets, cluster: str) -> Secrets:
    """The secrets of the stage after that of *secrets*; a new CA is made for the cluster called *cluster*."""
    now, overlap = stage(secrets), dict(secrets.overlap)
    if now == "trust":
        ca = pki.Pair(overlap.pop(NEXT_CA), overlap.pop(NEXT_CA_KEY))
        overlap[FORMER_CA] = secrets.ca_certificate
        return replace(secrets, ca_certificate=ca.certificate, ca_key=ca.key, overlap=overlap)
    if now == "issue":
        overlap[RETIRED_CA] = overlap.pop(FORMER_CA)
    elif now == "remove":
        del overlap[RETIRED_CA]
    else:
        made = pki.make_ca(cluster)
        overlap |= {NEXT_CA: made.certificate, NEXT_CA_KEY: made.key}
    return replace(secrets, overlap=overlap)


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
    overlap, changes = dict(secrets.overlap), {}
    for role in roles:
        name = f"{role}_password"
        overlap[f"{FORMER}{name}"] = secrets.password(role)
        changes[name] = random.token_urlsafe(24)
    return replace(secrets, overlap=overlap, **changes)  # type: ignore[arg-type]  # all of them are texts


def finish(secrets: Secrets, roles: Iterable[str]) -> Secrets:
    """The passwords of before are accepted no longer for *roles*."""
    gone = {f"{FORMER}{role}_password" for role in roles}
    return replace(secrets, overlap={name: one for name, one in secrets.overlap.items() if name not in gone})
