"""Reads what a cluster uses, and says what that took: python -m tests.bench.cluster KUBECONFIG"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from kubeadm_registry.upkeep import kubeconfig
from kubeadm_registry.upkeep.clusters import read


def main() -> None:
    """Read everything once; the login is not timed."""
    api = kubeconfig.by_kubeconfig(Path(sys.argv[1]))
    begin = time.monotonic(), time.process_time()
    report = read(api)
    took = time.monotonic() - begin[0], time.process_time() - begin[1]
    assert not report.problems, report.problems
    print(json.dumps({
        "seconds": round(took[0], 2), "cpu": round(took[1], 2), "uses": len(report.uses),
        "images": sum(use.count for use in report.uses),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
