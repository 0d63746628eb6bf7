"""Images go from a bundle into the registry: once, through every break, and proven at each server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from kubeadm_registry.bundle.make import FromLayout, create
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
    process = registry.popen("seed", "--bundle", bundle, "-o", "json", "--limit-rate", "20M")
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
    sent = int(str(result["sent"]))
    say(f"{registry.frontend}: killed at {done / 1e6:.0f} of {size / 1e6:.0f} MB, then {sent / 1e6:.0f} MB more")
    assert sent <= size - done, "what was in hand is not lost"
    assert result["images"] == len(held)
    whole(registry, held)


def test_the_holder_loses_its_power_in_the_middle(registry: Registry, tmp_path: Path) -> None:
    bundle, held = made(tmp_path)
    size = sum(len(blob) for image in held.values() for blob in image.blobs)
    victim = registry.holder()
    process = registry.popen("seed", "--bundle", bundle, "-o", "json", "--limit-rate", "20M")
    cut = False
    events = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))
            if not cut and int(events[-1].get("done", 0)) >= size * 2 // 5:
                victim.power_cut()
                cut = True
    finally:
        process.kill()
        _, errors = process.communicate()
    assert cut, events
    assert events[-1]["event"] == "result", (events[-1], errors)
    assert process.returncode == 5
    assert events[-1]["unproven"] == [victim.name]
    whole(registry, held)


def test_the_next_month_is_a_small_file(registry: Registry, tmp_path: Path) -> None:
    """A signed bundle, then a delta in which a layer has moved to another image, and an older one that comes again."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = ("--key", tmp_path / "key.pub")
    place = f"registry.example/months/{registry.frontend}"
    old, new = (images.image(SIZES, seed=time.time_ns() + number) for number in range(2))

    def make(name: str, held: dict[str, images.Image], since: Path | None = None) -> Path:
        layouts: list[FromLayout] = []
        for image, content in held.items():
            layout = content.write_layout(tmp_path / f"{name}-{len(layouts)}")
            layouts.append(FromLayout(layout, f"{image}:v1"))
        return create(tmp_path / f"{name}.tar", {}, images=layouts, since=since, sign=key).path

    may = make("may", {f"{place}/old": old})
    june_images = {f"{place}/moved": old, f"{place}/new": new}
    june = make("june", june_images, since=may)
    assert june.stat().st_size < may.stat().st_size * 1.1

    def refusal(bundle: Path) -> object:
        *_, last = registry.json("seed", "--bundle", bundle, *public, check=False)
        return last["code"]

    assert refusal(june) == "BundleBaseMissing"
    registry.cli("seed", "--bundle", may, *public)
    *_, result = registry.json("seed", "--bundle", june, *public)
    assert result["unproven"] == []
    whole(registry, june_images)
    sent = int(result["sent"]) / 1e6
    say(f"{registry.frontend}: {sent:.0f} MB of a delta, half of them moved, in {result['seconds']} s")
    *_, again = registry.json("seed", "--bundle", june, *public)
    assert again["sent"] == 0
    assert refusal(may) == "BundleReplayed"
    registry.cli("seed", "--bundle", may, "--allow-older")
