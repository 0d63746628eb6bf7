"""One reading of a registry, as for a plan: python -m tests.bench.holdings PORT CA. Prints seconds and counts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from kubeadm_registry.registry import Registry
from kubeadm_registry.upkeep import reading
from tests.bench.loopback import ADDRESS


def main() -> None:
    """Read everything once."""
    port, ca = int(sys.argv[1]), Path(sys.argv[2]).read_text()
    begin = time.monotonic(), time.process_time()
    found = reading.read(lambda: Registry(ADDRESS, port, ca=ca, timeout=60), {})
    took = time.monotonic() - begin[0], time.process_time() - begin[1]
    assert not found.problems, found.problems
    result = {
        "seconds": round(took[0], 1), "cpu": round(took[1], 1), "manifests": len(found.manifests),
        "tags": sum(len(one.tags) for one in found.repositories.values()), "repositories": len(found.repositories),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
