"""What is not as it should be, by names for people; nothing is decided by them."""

from __future__ import annotations

from collections.abc import Mapping

from kubeadm_registry.agent.model import FAILED, Health, Level, Memory, Observation, Report, Role, Settings, Verdict


def conditions(
    memory: Memory,
    seen: Observation,
    reports: Mapping[str, Report],
    *,
    proxy_dead: bool,
    proxy_ok: bool,
    settings: Settings,
) -> tuple[str, ...]:
    """The names; ``docs/agent.md`` says what each means."""
    found = {
        "HiddenHolder": memory.holding.hidden_since is not None,
        "AdvertsLost": memory.holding.outdone is not None,
        "NotYetGood": not memory.been_good,
        "FrontendDown": memory.frontend.health in FAILED,
        "FrontendSlow": memory.frontend.health is Health.SUSPECT,
        "StorageDown": memory.storage.health in FAILED,
        "StorageSlow": memory.storage.health is Health.SUSPECT,
        "StoragePartial": seen.storage is not None and memory.storage.health is Health.OK and not seen.storage_whole,
        "StorageCopying": seen.copying,
        "ProxyDown": proxy_dead,
        "ProxyPartial": not proxy_dead and (not proxy_ok or any(p.health is not Health.OK for p in memory.proxies)),
        "NoCanary": seen.manifest is None,
        "CanaryMissing": memory.verdict is Verdict.MISSING and memory.level is Level.FIT,
        "CanaryBroken": memory.verdict in (Verdict.MISSING, Verdict.WRONG) and memory.level is not Level.FIT,
        "ChainSlow": memory.verdict is Verdict.SLOW,
        "NoMajority": 1 + len(reports) < settings.majority,
        "Unguarded": seen.guarded is False,
        "WriterClosing": settings.leased and memory.lease.role is Role.CLOSING,
        "ClockOff": memory.clock_off is not None and memory.clock_off > settings.timings.clock_off,
        "NoTimer": settings.leased and not seen.timer_there,
        "MembersDiffer": any(said.members != settings.members for said in reports.values()),
        "Removed": memory.removed,
    }
    return tuple(name for name, true in found.items() if true)
