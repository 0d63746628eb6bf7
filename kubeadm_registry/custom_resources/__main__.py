"""Writes the manifests into a directory: ``python -m kubeadm_registry.custom_resources manifests``."""

from __future__ import annotations

import sys
from pathlib import Path

from kubeadm_registry.custom_resources.manifests import manifests


def main(directory: Path) -> None:
    """Write each file into *directory*, which is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in manifests().items():
        (directory / name).write_text(text)
        sys.stdout.write(f"{directory / name} written\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
