"""``images pin | unpin | pins``: images that stay whatever the policy of retention says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from kubeadm_registry import config
from kubeadm_registry.cli.command import Context, command, file_option
from kubeadm_registry.cli.retention_records import Records, opened
from kubeadm_registry.cli.tables import columns, moment, show_rows
from kubeadm_registry.config.durations import DURATION, seconds
from kubeadm_registry.engine.report import echo
from kubeadm_registry.errors import ConfigError, RegistryError
from kubeadm_registry.images.names import place, place_in
from kubeadm_registry.registry import retry
from kubeadm_registry.retention.names import wanted
from kubeadm_registry.retention.standing import Pin
from kubeadm_registry.upkeep.store import PATIENCE

_DAY = 86400


@command("pin", short_help="Keep an image, whatever the policy says")
@file_option
@click.option("--reason", required=True, help="Why; plans show it.")
@click.option("--until", metavar="TIME", help="End of the pin: a duration such as 90d, or a date such as 2027-03-31.")
@click.argument("name")
def pin(context: Context, path: Path | None, reason: str, until: str | None, name: str) -> None:
    """Keep the image NAME, a tag or digest, whatever the policy says and whether anything uses it."""
    cluster_file = config.load(path)
    where = place_in(cluster_file.spec, name)
    if not where.reference:
        raise ConfigError(
            f"{name} has neither tag nor digest", code="UsageInvalid", hint="pin one image, such as app:v1"
        )
    if until is not None:
        _until(until, 0)  # before anything is asked
    with opened(cluster_file, context.reporter()) as at:
        one = Pin(str(where), reason, at.now, None if until is None else _until(until, at.now))
        at.restate(lambda standing: standing.pinned(one))
        if not _is_there(at, one):
            context.reporter().note(f"{where} is not in the registry; the pin keeps it once it is", level="warning")
    context.reporter().result(f"pinned {where}")


@command("unpin", short_help="Remove the pin of an image")
@file_option
@click.argument("name")
def unpin(context: Context, path: Path | None, name: str) -> None:
    """Remove the pin of the image NAME; the policy decides about it again."""
    cluster_file = config.load(path)
    where = str(place_in(cluster_file.spec, name))
    with opened(cluster_file, context.reporter()) as at:
        pinned = [one.name for one in at.standing().pins]
        if where not in pinned:
            where = str(place(name))  # earlier releases pinned a name with what the registry is called
        if where not in pinned:
            raise ConfigError(f"{where} is not pinned", code="PinUnknown", hint="list them with `images pins`")
        at.restate(lambda standing: standing.unpinned(where))
    context.reporter().result(f"unpinned {where}")


@command("pins", short_help="List the pinned images")
@file_option
def pins(context: Context, path: Path | None) -> None:
    """List the pinned images, and why and until when each is pinned."""
    with opened(path, context.reporter()) as at:
        found, now = at.standing().pins, at.now
    if context.output == "json":
        echo(json.dumps({"pins": [{"name": one.name, "reason": one.reason, "until": one.until} for one in found]}))
        return
    table = columns("IMAGE", "UNTIL", "REASON")
    for one in found:
        ends = "removed" if one.until is None else moment(one.until) if one.holds(now) else "over"
        table.add_row(one.name, ends, one.reason)
    show_rows(table, found, "no image is pinned", context)


def _is_there(at: Records, pin: Pin) -> bool:
    """Whether the registry has what *pin* keeps, or its trash, from where it comes back; also if it cannot say."""
    asked = wanted(pin.name)
    if asked is None:
        return False
    reference, names = asked.digest or asked.tag, asked.repositories
    try:
        there = any(retry(partial(at.registry.digest, name, reference), PATIENCE) for name in names)
    except RegistryError:  # it is pinned all the same
        return True
    return there or any(one.repository in names and reference in one.tags for one in at.trash())


def _until(text: str, now: int) -> int:
    """When a pin ends, seconds since 1970. Raises ConfigError."""
    try:
        if DURATION.fullmatch(text):
            until = now + seconds(text)
        else:
            until = int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) + _DAY
        datetime.fromtimestamp(until, UTC)  # else it could not be shown
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--until: {text!r} is neither a duration nor a date",
            hint="write 90d, 12h or 2027-03-31",
            code="UsageInvalid",
        ) from None
    if until <= now:
        raise ConfigError(f"--until {text} is in the past", hint="pass a later date", code="UsageInvalid")
    return until
