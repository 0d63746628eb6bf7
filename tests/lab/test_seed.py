"""Images go from a bundle into the registry: once, through every break, and proven at each server."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from kubeadm_registry.bundle import FromLayout, create
from tests.lab import images
from tests.lab.registry import Registry

pytest_plugins = ["tests.lab.registry"]

SIZES = (64 * 2**20, 8 * 2**20, 200_000)


def made(directory: Path, count: int = 3) -> tuple[Path, dict[str, images.Image]]:
    """A bundle of images that nobody has seen before, and these by their repository."""
    held = {}
    layouts = []
    for number in range(count):
        image = images.image(SIZES if number == 0 else SIZES[1:], seed=time.time_ns() + number)
        layout = image.write_layout(directory / f"layout-{number}")
        layouts.append(FromLayout(layout, f"registry.example/seed/{directory.name.lower()}-{number}:v1"))
        held[f"registry.example/seed/{directory.name.lower()}-{number}"] = image
    create(directory / "images.tar", {}, images=layouts)
    return directory / "images.tar", held


def seeded(registry: Registry, bundle: Path) -> dict[str, object]:
    """Seed *bundle*; the result."""
    *_, last = registry.json("seed", "--bundle", bundle)
    assert last["event"] == "result", last
    return last


def say(text: str) -> None:
    """Show a figure."""
    sys.stdout.write(f"\n  {text}\n")


def whole(registry: Registry, held: dict[str, images.Image]) -> None:
    """Every byte of each image can be read through the VIP."""
    for repository, image in held.items():
        assert not images.missing(registry, image, repository, timeout=60)


def test_once_and_never_again(registry: Registry, tmp_path: Path) -> None:
    bundle, held = made(tmp_path)
    first = seeded(registry, bundle)
    size = sum(len(blob) for image in held.values() for blob in image.blobs)
    assert first["sent"] == size
    assert first["unproven"] == []
    whole(registry, held)
    second = seeded(registry, bundle)
    assert (second["sent"], second["images"]) == (0, len(held))
    say(f"{registry.frontend}: {size / 1e6:.0f} MB in {first['seconds']} s, again in {second['seconds']} s")


def test_through_ssh_where_nothing_else_leads_there(registry: Registry, tmp_path: Path) -> None:
    bundle, held = made(tmp_path)
    with registry.without_direct_way():
        result = seeded(registry, bundle)
    assert result["unproven"] == []
    say(f"{registry.frontend}: {int(str(result['sent'])) / 1e6:.0f} MB through SSH in {result['seconds']} s")
    whole(registry, held)


def test_a_killed_run_goes_on_and_what_was_there_is_not_sent_again(registry: Registry, tmp_path: Path) -> None:
    bundle, held = made(tmp_path)
    size = sum(len(blob) for image in held.values() for blob in image.blobs)
    done = 0
    process = registry.popen("seed", "--bundle", bundle, "-o", "json")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            done = int(event.get("done", 0))
            if done > size // 4:
                process.send_signal(signal.SIGKILL)
                break
    finally:
        process.kill()
        process.communicate()
    assert size // 4 < done < size
    result = seeded(registry, bundle)
    say(f"{registry.frontend}: killed at {done / 1e6:.0f} of {size / 1e6:.0f} MB")
    assert result["images"] == len(held)
    whole(registry, held)


def test_the_holder_loses_its_power_in_the_middle(registry: Registry, tmp_path: Path) -> None:
    bundle, held = made(tmp_path)
    size = sum(len(blob) for image in held.values() for blob in image.blobs)
    victim = registry.holder()
    process = registry.popen("seed", "--bundle", bundle, "-o", "json")
    cut = False
    events = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))
            if not cut and int(events[-1].get("done", 0)) > size // 4:
                victim.power_cut()
                cut = True
    finally:
        process.kill()
        _, errors = process.communicate()
    assert cut, events
    assert events[-1]["event"] == "result", (events[-1], errors)
    assert process.returncode == 0
    assert events[-1]["unproven"] == [victim.name]
    whole(registry, held)
