"""New certificates for the nodes, before anybody is warned of the present ones: each node's helper issues its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeadm_registry.access.collecting import Member
from kubeadm_registry.errors import Error
from kubeadm_registry.operator.conditions import Verdict
from kubeadm_registry.status import CERTIFICATE_WARNING_DAYS

KIND = "CertificateRenewal"
#: Days before the end. There is time to try it again before `status` warns.
DAYS = 2 * CERTIFICATE_WARNING_DAYS


def due(status: Mapping[str, Any]) -> set[str]:
    """The nodes whose certificates end soon, or are rejected, by the *status* that the rounds of health write."""
    return {
        node["name"] for node in status.get("nodes", ())
        # Of one that has ended, as while no operator ran, there are no days: the handshake fails.
        if node.get("certificateDays", DAYS) < DAYS
        or any(one["type"] == "CertificatesValid" and one["status"] == "False" for one in node.get("health", ()))
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Renewals:
    """What came of the last round: why certificates were not renewed, by node."""

    _failed: dict[str, str] = field(default_factory=dict)

    def turn(
        self, status: Mapping[str, Any], members: Sequence[Member], lead: Callable[[], object]
    ) -> Iterator[tuple[str, Verdict]]:
        """Have one of *members* after the other renew its certificate, if that is due; each with what is news.

        It ends with the second that fails: one node's own trouble is no reason to let the others' end. So those that
        failed the last time come last. *lead* is called before each, and raises Lost.
        """
        names, failed = due(status), 0
        for member in sorted(members, key=lambda one: one.name in self._failed):
            if member.name not in names:
                continue
            lead()
            before = self._failed.pop(member.name, "")
            try:
                if member.do("renew")["renewed"]:
                    yield member.name, Verdict(KIND, True, "Renewed", "it has a new certificate")
            except Error as error:
                self._failed[member.name] = error.code
                if before != error.code:
                    yield member.name, Verdict(KIND, False, error.code, error.advice)
                failed += 1
                if failed == 2:
                    return
