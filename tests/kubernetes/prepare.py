"""Makes the bundle that the tests install from, with Kubernetes' images: a minute of compression, ahead of them.

python -m tests.kubernetes.prepare
"""

from __future__ import annotations

from tests.kubernetes import images
from tests.lab.registry import bundle

if __name__ == "__main__":
    bundle("distribution", layout=images.layout())
