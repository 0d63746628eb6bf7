"""Reads from HAProxy's log which blobs recent pushes rely on: those that a client found, mounted or uploaded.

A client that finds a blob does not send it, and pushes the manifest later. Until then the blob must not be deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeadm_registry import paths
from kubeadm_registry.agent.pulls import SILENT
from kubeadm_registry.errors import Error
from kubeadm_registry.transport.host import Host

#: Different blobs that are taken from one server.
MOST = 500_000
_REPOSITORY, _DIGEST = "[a-z0-9][a-z0-9._/-]{0,255}", "sha256:[0-9a-f]{64}"
#: A blob that was looked for and found, and one that was mounted or uploaded, as the proxy logs it. In its JSON a slash
#: may be escaped, and is not any more when this is compared.
FOUND = rf'\{{.*"method":"HEAD","path":"/v2/({_REPOSITORY})/blobs/({_DIGEST})","status":200,.*'
TAKEN = rf'\{{.*"path":"/v2/({_REPOSITORY})/blobs/uploads/[^"]*","status":201,.*"blob":"({_DIGEST})".*'
#: The time of the first line there is, how often journald has dropped lines since there were too many, how many units
#: run although none of them has logged a request lately (they log the probes of the agents), then ``REPOSITORY DIGEST``
#: of each such request, once. ``$1`` seconds back, ``$2`` the most lines, ``$3`` and ``$4`` what to look for, ``$5``
#: seconds without a request, ``$6...`` the units.
ASK = r"""
back=$1 most=$2 found=$3 taken=$4 silent=$5; shift 5
running=$(systemctl is-active -- "$@" | grep -c -x -e active -e reloading)
for unit in "$@"; do set -- "$@" "--unit=$unit"; shift; done
journalctl --quiet --no-pager --lines=0 "$@" || exit
echo "begins $(journalctl --quiet --no-pager --output=short-unix "$@" | head -n 1 | cut -d ' ' -f 1)"
echo "suppressed $(
  journalctl --quiet --no-pager --output=cat --since="-${back}s" --unit=systemd-journald.service |
    grep -c 'Suppressed .* messages from kubeadm-registry-haproxy@'
)"
journalctl --quiet --no-pager --output=cat --since="-${silent}s" "$@" | grep -q -m 1 '^{"client":"' && running=0
echo "silent $running"
journalctl --quiet --no-pager --output=cat --since="-${back}s" "$@" | LC_ALL=C grep -F sha256: |
  LC_ALL=C sed -nE -e 's#\\/#/#g' -e "s#^$found\$#\1 \2#p" -e "s#^$taken\$#\1 \2#p" | LC_ALL=C sort -u | head -n "$most"
"""


@dataclass(frozen=True, slots=True)
class PushLog:
    """Repository and digest of each blob, when the log begins, and whether journald dropped lines of it."""

    blobs: frozenset[tuple[str, str]]
    begins: datetime | None
    suppressed: bool = False


def ask(host: Host, back: float) -> PushLog:
    """The blobs on which pushes by *host* relied in the last *back* seconds. Raises Error (LogUnreadable)."""
    argv = ("sh", "-c", ASK, "named", f"{back:.0f}", str(MOST), FOUND, TAKEN, f"{SILENT:.0f}", *paths.HAPROXY_UNITS)
    result = host.query(*argv, timeout=300)
    lines = result.text.splitlines()
    found = parse(lines) if result.ok else None
    silent = any(re.fullmatch(r"silent [1-9][0-9]*", line) for line in lines[2:3])
    if found is None or silent or len(found.blobs) >= MOST:
        why = "it names too many blobs" if found else result.stderr.decode(errors="replace").strip()[:300]
        if silent:
            why = f"the proxies run, and it has no request of the last {SILENT:.0f} s; is MaxLevelStore= below info?"
        raise Error(
            f"cannot read the log: {why}", host=host.name, code="LogUnreadable",
            hint="see `journalctl -u 'kubeadm-registry-haproxy@*'` on that node",
        )  # fmt: skip
    return found


def parse(lines: Iterable[str]) -> PushLog:
    """Read the output of ASK."""
    first, *rest = [*lines] or [""]
    told = re.fullmatch(r"begins (\d{1,12})(\.\d+)?", first)
    begins = datetime.fromtimestamp(int(told[1]), UTC) if told else None
    pairs = (re.fullmatch(rf"({_REPOSITORY}) ({_DIGEST})", line) for line in rest)
    suppressed = any(re.fullmatch(r"suppressed [1-9][0-9]*", line) for line in rest[:1])
    return PushLog(frozenset((one[1], one[2]) for one in pairs if one), begins, suppressed)
