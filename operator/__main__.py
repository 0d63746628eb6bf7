"""Starts the operator: ``python -m kubeadm_registry.operator``. The environment has its settings (``settings.py``)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from kubeadm_registry.errors import Error
from kubeadm_registry.operator import running, settings
from kubeadm_registry.operator.conditions import told


def main() -> None:
    """Run until somebody ends it. Threads that are in the middle of something end with it."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kubeadm_registry").setLevel(logging.INFO)  # httpx would tell each request to the registry
    try:
        asyncio.run(running.run(settings.from_environment()))
        code = 0
    except Error as error:
        logging.getLogger("kubeadm_registry.operator").error("%s", told(error))
        code = error.exit_code
    except Exception:
        logging.getLogger("kubeadm_registry.operator").exception("unexpected")
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
