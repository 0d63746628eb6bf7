"""What tests do with the measuring client: start it, end it, and judge what it saw."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kubeadm_registry import paths
from tests.lab.command import LabError
from tests.lab.registry import Login, Registry

READER = Path(__file__).with_name("reader.py")
PERIOD = 0.02
DEADLINE = 5.0
WRONG = "WrongBytes"


@dataclass(frozen=True, slots=True)
class Request:
    """One read: when it began (seconds since 1970), how long it took, and what went wrong (empty: nothing)."""

    kind: str
    begin: float
    seconds: float
    error: str

    @property
    def end(self) -> float:
        """When it was over."""
        return self.begin + self.seconds

    @property
    def cut_off(self) -> bool:
        """Whether its response had begun and ended before its end."""
        return self.error.startswith("CutOff:")

    @property
    def closed(self) -> bool:
        """Whether its connection was closed before its response was here whole; containerd tries that again at once."""
        return self.cut_off or self.error.startswith("ConnectionResetError:")


@dataclass
class Reading:
    """All that the client saw; complete once the ``with`` of ``reading`` has ended."""

    begin: float = 0.0
    end: float = 0.0
    """No request begins after this time."""
    struck: float = 0.0
    """When a fault had struck, if one did."""
    requests: list[Request] = field(default_factory=list)
    pressure: dict[str, float] = field(default_factory=dict)
    """Seconds for which something on this machine waited for its processors, disks or memory meanwhile."""

    @property
    def wrong(self) -> list[Request]:
        """Those that were answered with other bytes than were pushed, which nothing excuses."""
        return [request for request in self.requests if request.error == WRONG]

    @property
    def failed(self) -> list[Request]:
        """Those without the right answer within the deadline."""
        return [request for request in self.requests if request.error]

    @property
    def gap(self) -> float:
        """The longest time in which no manifest, or no blob, was read to its end.

        That is the longest interval between two successes of one kind that follow each other, the times at which the
        client began and ended counting as successes. Each kind is asked for every 40 ms, so 0.04 is the least.
        """
        return max(self._gap(kind)[1] for kind in ("manifest", "blob"))

    def _gap(self, kind: str) -> tuple[float, float]:
        ends = sorted(request.end for request in self.requests if request.kind == kind and not request.error)
        moments = [self.begin, *(end for end in ends if end <= self.end), self.end]
        return max(((a, b - a) for a, b in itertools.pairwise(moments)), key=lambda pair: pair[1])

    @property
    def stood_still(self) -> float:
        """The longest time in which the client began no request, though it waits for none: its machine stood still."""
        begins = sorted(request.begin for request in self.requests)
        return max((b - a for a, b in itertools.pairwise(begins)), default=0.0)

    @property
    def slowest(self) -> float:
        """Seconds that the slowest good request took."""
        return max((request.seconds for request in self.requests if not request.error), default=0.0)

    def percentile(self, share: float) -> float:
        """Seconds within which the share *share* (0 to 1) of all good requests was answered."""
        times = sorted(request.seconds for request in self.requests if not request.error)
        return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0

    def __str__(self) -> str:
        waited = [f"; waited {seconds:.1f} s for {what}" for what, seconds in self.pressure.items() if seconds >= 0.1]
        errors: dict[str, int] = {}
        for request in self.failed:
            errors[request.error[:60]] = errors.get(request.error[:60], 0) + 1
        return (
            f"gap {self.gap:.3f} s, {len(self.failed)} of {len(self.requests)} failed, slowest {self.slowest:.3f} s, "
            f"median {self.percentile(0.5) * 1000:.0f} ms, 99 % {self.percentile(0.99) * 1000:.0f} ms"
            + "".join(f"; {count} x {error}" for error, count in errors.items())
            + (f"; the client stood still for {self.stood_still:.1f} s" if self.stood_still > 0.2 else "")
            + "".join(waited)
        )


@dataclass(frozen=True, slots=True)
class Object:
    """An image in the registry of which the client reads the manifest and one blob."""

    repository: str
    manifest: str
    blob: str


@contextmanager
def reading(
    registry: Registry,
    what: Object,
    *,
    period: float = PERIOD,
    deadline: float = DEADLINE,
    address: str = "",
    login: Login | None = None,
) -> Iterator[Reading]:
    """Read *what* at *address* (the VIP) from the client host for the length of a ``with``.

    The Reading is complete afterwards. A request begins every *period* seconds, as *login* if given, and fails
    unless it is answered within *deadline* seconds. Raises LabError if the first reads fail.
    """
    client = registry.client
    client.put(READER, "/root/reader.py")
    client.put(registry.ca, "/root/registry-ca.crt")
    words = (address or registry.vip, paths.REGISTRY_PORT, "/root/registry-ca.crt", what.repository, what.manifest)
    argv = client.sh_argv("python3", "/root/reader.py", *map(str, (*words, what.blob, period, deadline)))
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    result = Reading()
    try:
        process.stdin.write(f"{login.pair if login else ''}\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise LabError(f"the reader did not start: {process.communicate()[1].strip()}")
        result.begin, before = time.time(), _pressure()
        yield result
        result.end = time.time()
        result.pressure = {what: seconds - before[what] for what, seconds in _pressure().items()}
        output, errors = process.communicate(timeout=deadline + 10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise LabError(f"the reader failed: {errors.strip()}")
    result.requests = [Request(**json.loads(line)) for line in output.splitlines()]


def summary(readings: Sequence[Reading]) -> str:
    """Median and maximum of the gaps, and the failed requests, of several runs of one fault."""
    gaps = [one.gap for one in readings]
    failed = [len(one.failed) for one in readings]
    asked = sum(len(one.requests) for one in readings)
    return (
        f"gap median {statistics.median(gaps):.2f} s, max {max(gaps):.2f} s; "
        f"failed {sum(failed)} of {asked} ({', '.join(map(str, failed))}); "
        f"slowest {max(one.slowest for one in readings):.2f} s; n = {len(readings)}"
    )


def _pressure() -> dict[str, float]:
    """Seconds since the boot for which some process of this machine waited for each resource, if its kernel tells.

    Source: the kernel's Documentation/accounting/psi.rst.
    """
    found = {}
    for what in ("cpu", "io", "memory"):
        path = Path("/proc/pressure") / what
        if path.exists():
            found[what] = int(path.read_text().splitlines()[0].rpartition("total=")[2]) / 1e6
    return found
