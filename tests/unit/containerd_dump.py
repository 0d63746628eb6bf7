"""Stands for the program containerd in unit tests: ``--version``, and ``--config FILE config dump``.

It reads, merges and converts files as the releases do, as far as mirrors and the pause image go;
test_containerd_dump.py compares it with what real ones said. Absolute imports lie below the directory that ``$STUB``
is in; its file ``version`` has what ``--version`` prints, its file ``dump`` (if there) what each dump is.

Sources: services/server/config/config.go (1.6, 1.7), cmd/containerd/server/config/config.go and
plugins/cri/images/plugin.go (2.x).
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

CRI, LONG_CRI, IMAGES = "cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
DEFAULT_PAUSE = {(1, 6): "3.6", (1, 7): "3.8", (2, 0): "3.10", (2, 1): "3.10", (2, 2): "3.10.1"}
Values = dict[str, Any]


class Refused(Exception):
    """containerd does not start."""


def merge(into: Values, other: Values) -> None:
    """Key by key, later ones win."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def long_names(plugins: Values) -> Values:
    """The plugins of a file of version 1 as version 2 calls them."""
    return {LONG_CRI if name == CRI else name: value for name, value in plugins.items()}


def as_version_3(plugins: Values) -> None:
    """What the images plugin takes from the CRI plugin of version 2."""
    old = plugins.get(LONG_CRI)
    if old is None:
        return
    new = plugins.setdefault(IMAGES, {})
    if "sandbox_image" in old:
        new.setdefault("pinned_images", {})["sandbox"] = old["sandbox_image"]
    if "registry" in old:
        new["registry"] = old["registry"]


def load(main: str, release: tuple[int, int], root: str) -> tuple[int, Values]:
    """Version and plugins of the files from *main* on. Raises Refused, FileNotFoundError."""
    version, newest = (0, 2) if release < (2, 0) else (3, 3) if release < (2, 3) else (4, 4)
    plugins: Values = {}
    pending, loaded = [main], set()
    while pending:
        path = pending.pop(0)
        if path in loaded:
            continue
        loaded.add(path)
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if release < (2, 0):
                raise Refused(f"failed to load TOML: {path}: no such file or directory") from None
            return version, plugins
        except (OSError, ValueError) as error:
            raise Refused(f"failed to load TOML: {path}: {error}") from None
        said, own = values.get("version", 0), values.get("plugins", {})
        if not isinstance(said, int) or not isinstance(own, dict) or not isinstance(values.get("imports", []), list):
            raise Refused(f"failed to unmarshal TOML: {path}: values of the wrong kind")
        if release < (2, 0):
            plugins |= copy.deepcopy(own)
        else:
            own = long_names(own) if said < 2 else own
            if release >= (2, 3) and said < newest:
                as_version_3(own)
            merge(plugins, own)
        version = said if said and (release < (2, 0) or said >= 2) else version
        pending += imports(path, values.get("imports", []), release, root)
    if version > newest and release >= (1, 7):
        raise Refused(f"expected containerd config version equal to or less than {newest}, got {version}")
    if release < (2, 0) and version >= 2 and any("." not in name for name in plugins):
        raise Refused("invalid plugin key URI expect io.containerd.x.vx")
    return version or 1, plugins


def imports(parent: str, names: list[str], release: tuple[int, int], root: str) -> list[str]:
    """Absolute paths, those of a pattern sorted."""
    found = []
    for name in names:
        base = root if "*" in name and release < (1, 7) else Path(parent).parent
        path = name if name.startswith(root) else f"{root}{name}" if name.startswith("/") else f"{base}/{name}"
        path = os.path.normpath(path)
        # Path.glob sees hidden files as Go's does, and glob.glob does not.
        found += sorted(map(str, Path("/").glob(path[1:]))) if "*" in path else [path]
    return found


def dump(main: str, release: tuple[int, int], root: str) -> str:
    """What ``config dump`` prints of the two settings. Raises Refused."""
    version, plugins = load(main, release, root)
    if release < (2, 0):
        cri = plugins.get(LONG_CRI if version >= 2 else CRI, {})
        table, pause, sandbox = f'plugins."{LONG_CRI}"', "sandbox_image", cri.get("sandbox_image")
    else:
        if version == 2 and release < (2, 3):
            as_version_3(plugins)
        cri = plugins.get(IMAGES, {})
        table, pause = f'plugins."{IMAGES}"', "sandbox"
        sandbox = cri.get("pinned_images", {}).get("sandbox")
    sandbox = sandbox or f"registry.k8s.io/pause:{DEFAULT_PAUSE.get(release, '3.10.2')}"
    path = json.dumps(cri.get("registry", {}).get("config_path", ""))
    inner = table if release < (2, 0) else f"{table}.pinned_images"
    return f"[{inner}]\n{pause} = {json.dumps(sandbox)}\n[{table}.registry]\nconfig_path = {path}\n"


def main() -> None:
    """As containerd's command line."""
    stub = Path(os.environ["STUB"])
    said = (stub / "version").read_text(encoding="utf-8")
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(said)
        return
    if (stub / "dump").exists():
        sys.stdout.write((stub / "dump").read_text(encoding="utf-8"))
        return
    major, minor = said.split()[-1].split(".")[:2]
    try:
        sys.stdout.write(dump(sys.argv[2], (int(major), int(minor)), str(stub.parent)))
    except Refused as error:
        sys.exit(f"containerd: {error}")


if __name__ == "__main__":
    main()
