"""Counts and greatest values over many schedules, and the table that the documentation shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.run import Result

HEAD = (
    "| schedules | how many | openings | broken promises | longest recovery | longest without a writer "
    "| two gates, one agent not run | two zots |"
)


@dataclass
class Row:
    """All schedules of one kind. Times are seconds."""

    schedules: int = 0
    openings: int = 0
    events: int = 0
    seconds: float = 0.0
    recovery: float = 0.0
    without_writer: float = 0.0
    silent_gates: float = 0.0
    overlap: float = 0.0

    def add(self, result: Result) -> None:
        """Count one."""
        self.merge(
            Row(
                1,
                result.counts.openings,
                result.events,
                result.seconds,
                result.recovery,
                result.counts.without_writer,
                result.counts.silent_gates,
                result.counts.overlap,
            )
        )

    def merge(self, other: Row) -> None:
        """Count what was counted elsewhere."""
        self.schedules += other.schedules
        self.openings += other.openings
        self.events += other.events
        self.seconds += other.seconds
        self.recovery = max(self.recovery, other.recovery)
        self.without_writer = max(self.without_writer, other.without_writer)
        self.silent_gates = max(self.silent_gates, other.silent_gates)
        self.overlap = max(self.overlap, other.overlap)


@dataclass
class Summary:
    """Rows by kind, and the schedules that broke a promise: seed, kind, what."""

    rows: dict[str, Row] = field(default_factory=dict)
    broken: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one."""
        self.rows.setdefault(result.kind, Row()).add(result)
        if result.finding is not None:
            self.broken.append((result.seed, result.kind, f"{result.finding.promise}: {result.finding.text}"))

    def merge(self, other: Summary) -> None:
        """Count what was counted elsewhere."""
        for kind, row in other.rows.items():
            self.rows.setdefault(kind, Row()).merge(row)
        self.broken += other.broken

    def total(self) -> Row:
        """All kinds together."""
        total = Row()
        for row in self.rows.values():
            total.merge(row)
        return total

    def table(self) -> str:
        """Markdown."""
        lines = [HEAD, "| --- " * 8 + "|"]
        for name, row in [*sorted(self.rows.items()), ("all", self.total())]:
            broken = sum(1 for _, kind, _ in self.broken if name in (kind, "all"))
            lines.append(
                f"| {name} | {row.schedules:,} | {row.openings:,} | {broken:,} | {row.recovery:.1f} s "
                f"| {row.without_writer:.1f} s | {row.silent_gates:.2f} s | {row.overlap:.2f} s |"
            )
        return "\n".join(lines)
