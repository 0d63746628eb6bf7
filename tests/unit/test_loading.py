"""The bundles that `restore` and `recover` are given: in which order they are loaded, and which has the programs."""

from __future__ import annotations

from pathlib import Path

from kubeadm_registry import config
from kubeadm_registry.access import loading
from kubeadm_registry.bundle.make import FromLayout, choose, create
from tests.unit.bundle_files import image, script, write_layout

SMALLEST = config.parse(config.SMALLEST, "cluster.yaml")
OUTPUTS = {"garage": "garage v{} [features: none]", "zot": "zot v{}", "haproxy": "HAProxy version {}-1 2026/01/01"}


def bundle(folder: Path, name: str, *, since: Path | None = None, **programs: str) -> Path:
    """A bundle with an image of that name, and programs of those versions."""
    path = folder / f"{name}.tar"
    sources = [FromLayout(write_layout(path.with_suffix(".layout"), image(f"example.org/{name}:v1", name.encode())))]
    ours = {one: script(folder / f"{name}-{one}", OUTPUTS[one].format(which)) for one, which in programs.items()}
    chosen = choose(list(ours), ours) if ours else {}
    return create(path, chosen, images=sources, since=since, cache=folder / "cache").path


def given(*paths: Path) -> list[loading.Given]:
    return loading.given(paths, None, lambda *_, **__: None)


def test_bundles_keep_their_order_and_each_series_begins_with_its_first(tmp_path: Path) -> None:
    old = bundle(tmp_path, "old")
    since = bundle(tmp_path, "since", since=old)
    after = bundle(tmp_path, "after", since=since)
    new = bundle(tmp_path, "new")
    # The tags of the last one count: a line that was begun anew comes after all of the one before.
    assert [one.path for one in given(old, since, new)] == [old, since, new]
    assert [one.path for one in given(after, new, old, since)] == [old, new, since, after]


def test_programs_that_a_delta_only_lists_cannot_be_installed_from_it(tmp_path: Path) -> None:
    full = bundle(tmp_path, "full", garage="2.3.0", zot="2.1.0")
    delta = create(
        tmp_path / "delta.tar",
        choose(["garage", "zot", "haproxy"], {
            "garage": tmp_path / "full-garage", "zot": tmp_path / "full-zot",
            "haproxy": script(tmp_path / "haproxy", OUTPUTS["haproxy"].format("3.2.0")),
        }),
        since=full, cache=tmp_path / "cache",
    ).path  # fmt: skip
    assert loading.with_programs(SMALLEST, given(full, delta)) == full


def test_of_bundles_with_the_same_programs_the_last_one_has_them(tmp_path: Path) -> None:
    old, new = (bundle(tmp_path, name, garage=version) for name, version in (("old", "2.3.0"), ("new", "2.4.0")))
    images = bundle(tmp_path, "images")
    assert loading.with_programs(SMALLEST, given(old, new, images)) == new


def test_bundles_may_have_images_alone(tmp_path: Path) -> None:
    images = bundle(tmp_path, "images")
    assert loading.with_programs(SMALLEST, given(images)) is None
