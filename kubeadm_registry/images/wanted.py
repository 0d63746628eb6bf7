"""What nodes asked for and did not get, from the proxies' logs: the list that goes out to where there is internet.

Anybody may ask, so what stands in a log is anybody's text: only what is a whole and plain name comes through, and of
names no more than a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kubeadm_registry import paths
from kubeadm_registry.errors import ConfigError, Error
from kubeadm_registry.images.names import OURS, REFERRERS_TAG, Place, name_of, upstream
from kubeadm_registry.oci.references import parse as parse_name
from kubeadm_registry.transport.host import Host

#: Different requests that are taken from one server, the most frequent ones.
MOST = 20_000
#: Seconds, 27 years: journalctl fails for a time before 1970, and a script that counts its lines finds none.
_FURTHEST = 9999 * 86400
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

#: A request for a manifest that was answered 404, as the proxy logs it; only nodes' own: they pull as anybody, or as
#: ``pull``. In HAProxy's JSON a slash may be escaped, and is not any more when this is compared.
REQUEST = (
    r'\{"client":"([0-9a-fA-F.:]{2,45})","who":"(anonymous|pull)","method":"(GET|HEAD)",'
    r'"path":"/v2/([a-z0-9][a-z0-9._/-]{0,255})/manifests/([A-Za-z0-9_][A-Za-z0-9_.:-]{0,127})","status":404,.*'
)
#: The time of the first line there is, then client, repository and reference of each such request, with how often.
#: Counted on the server, for a log may be long. ``$1`` seconds back, ``$2`` the most lines, ``$3`` what to look for,
#: ``$4...`` the units.
ASK = r"""
back=$1 most=$2 request=$3; shift 3
for unit in "$@"; do set -- "$@" "--unit=$unit"; shift; done
journalctl --quiet --no-pager --lines=0 "$@" || exit
echo "begins $(journalctl --quiet --no-pager --output=short-unix "$@" | head -n 1 | cut -d ' ' -f 1)"
journalctl --quiet --no-pager --output=cat --since="-${back}s" "$@" | LC_ALL=C grep -F '"status":404,' |
  LC_ALL=C sed -nE -e 's#\\/#/#g' -e "s#^$request\$#\1 \4 \5#p" | sort | uniq -c | sort -k 1,1nr -k 2 | head -n "$most"
"""
_LINE = re.compile(r" *(\d+) (\S+) (\S+) (\S+)")


@dataclass(slots=True)
class MissedPull:
    """How often an image was requested but missing, and by which clients."""

    times: int = 0
    clients: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one server's log tells: requests by place, since when there is a log at all, whether that was all."""

    wishes: Mapping[Place, MissedPull]
    begins: datetime | None
    complete: bool


def seconds(text: str, *, option: str = "--since") -> int:
    """The length of ``7d``, ``12h``, ``30m`` or ``2w`` in seconds, as the *option* has it. Raises ConfigError."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})([mhdw])", text)
    if found is None:
        raise ConfigError(
            f"{option} {text}: not a valid duration", hint="write it as 7d, 12h or 30m", code="UsageInvalid"
        )
    return min(int(found[1]) * _UNITS[found[2]], _FURTHEST)


def ask(host: Host, back: int) -> Asked:
    """What was asked for at *host* in the last *back* seconds, and not there. Raises Error."""
    argv = ("sh", "-c", ASK, "wanted", str(back), str(MOST), REQUEST, *paths.HAPROXY_UNITS)
    result = host.query(*argv, timeout=300)
    if not result.ok:
        raise Error(
            f"cannot read the log: {result.stderr.decode(errors='replace').strip()[:300]}", host=host.name,
            code="LogUnreadable", hint="see `journalctl -u \'kubeadm-registry-haproxy@*\'` on that node",
        )  # fmt: skip
    return parse(result.text.splitlines())


def parse(lines: Iterable[str]) -> Asked:
    """What the script on a server wrote."""
    first, *rest = [*lines] or [""]
    told = re.fullmatch(r"begins (\d{1,12})(\.\d+)?", first)
    begins = datetime.fromtimestamp(int(told[1]), UTC) if told else None
    wishes: dict[Place, MissedPull] = {}
    for line in rest:
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        times, client, repository, reference = found.groups()
        # Who looks for signatures asks for tags that are seldom there.
        if repository.startswith(OURS) or REFERRERS_TAG.match(reference):
            continue
        wish = wishes.setdefault(Place(repository, reference), MissedPull())
        wish.times += int(times)
        wish.clients.add(client)
    return Asked(wishes, begins, complete=len(rest) < MOST)


def together(asked: Iterable[Asked]) -> dict[Place, MissedPull]:
    """The wishes of all servers."""
    found: dict[Place, MissedPull] = {}
    for one in asked:
        for place, wish in one.wishes.items():
            total = found.setdefault(place, MissedPull())
            total.times += wish.times
            total.clients |= wish.clients
    return found


def is_name(place: Place) -> bool:
    """Whether *place* is where the image of an upstream would be, under a name that every client reads alike."""
    return bool(upstream(place.repository) and parse_name(str(place)))


def to_text(wishes: Mapping[Place, MissedPull], since: str, now: datetime) -> str:
    """The list, to be read by people and by ``bundle create --images-from``: a name a line, sorted, with comments."""
    named = {str(place): wish for place, wish in wishes.items() if is_name(place)}
    others = {name_of(place.repository, place.reference): wish for place, wish in wishes.items() if not is_name(place)}
    width = max(map(len, named), default=0)
    lines = [
        f"# Images that nodes requested and did not get, in the {since} before {now.isoformat(timespec='seconds')}.",
        "# On a host with internet access: kubeadm-registry bundle create --images-from THIS-FILE -o images.tar",
        *(f"{name:<{width}}  # {_told(wish)}" for name, wish in sorted(named.items())),
    ]
    if others:
        lines.append("# Requested without the name of an upstream registry, so their origin is unknown:")
        lines += [f"#   {name}  {_told(wish)}" for name, wish in sorted(others.items())]
    return "\n".join(lines) + "\n"


def _told(wish: MissedPull) -> str:
    clients = sorted(wish.clients)
    more = f" and {len(clients) - 5} more" if len(clients) > 5 else ""
    return f"{wish.times} {'time' if wish.times == 1 else 'times'}, by {', '.join(clients[:5])}{more}"
