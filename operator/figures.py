"""The operator's own metrics, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

PREFIX = "kubeadm_registry_operator_"
HELP = {
    "leader": ("gauge", "1 if this replica acts."),
    "lease_epoch": ("gauge", "How often the lease changed hands before this replica had it."),
    "condition": ("gauge", "1 for what each condition of the RegistryCluster says."),
    "node_serves": ("gauge", "1 if the node serves the canary image."),
    "plan_deletions": ("gauge", "Tags and untagged manifests that the newest plan deletes."),
    "plan_freed_bytes": ("gauge", "Bytes that the newest plan frees."),
    "plan_made_seconds": ("gauge", "When the newest plan was made, seconds since 1970."),
    "space_before_bytes": ("gauge", "Bytes that were stored before space was freed last."),
    "space_after_bytes": ("gauge", "Bytes that were stored after space was freed last."),
    "space_freed_bytes": ("gauge", "Bytes of the blobs that were deleted then."),
    "round_seconds": ("gauge", "How long the last round took."),
    "round_ended_seconds": ("gauge", "When the last round ended without an error, seconds since 1970."),
    "errors_total": ("counter", "Rounds that failed."),
}
Labels = tuple[tuple[str, str], ...]


class Figures:
    """Values by name and labels; threads may set them."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        self._lock = threading.Lock()

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set one value."""
        self.replace(name, {tuple(labels.items()): value}, keep=True)

    def add(self, name: str, **labels: str) -> None:
        """Count one up."""
        with self._lock:
            values = self._values.setdefault(name, {})
            values[tuple(labels.items())] = values.get(tuple(labels.items()), 0) + 1

    def replace(self, name: str, values: Mapping[Labels, float], *, keep: bool = False) -> None:
        """Set all values of a name; the others are gone unless *keep*."""
        with self._lock:
            self._values[name] = {**(self._values.get(name, {}) if keep else {}), **values}

    def ended(self, kind: str, began: float) -> None:
        """A round of that *kind*, which *began* at that time (time.monotonic), has ended well."""
        self.set("round_seconds", time.monotonic() - began, round=kind)
        self.set("round_ended_seconds", time.time(), round=kind)

    def text(self) -> str:
        """The page."""
        lines = []
        with self._lock:
            for name, values in sorted(self._values.items()):
                kind, about = HELP[name]
                lines += [f"# HELP {PREFIX}{name} {about}", f"# TYPE {PREFIX}{name} {kind}"]
                for labels, value in sorted(values.items()):
                    inside = ",".join(f'{key}="{text}"' for key, text in labels)
                    lines.append(f"{PREFIX}{name}{f'{{{inside}}}' if inside else ''} {value:.10g}")
        return "\n".join(lines) + "\n"
