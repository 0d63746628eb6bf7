"""The program: ``python -m kubeadm_registry``, and what its command starts."""

from __future__ import annotations

import sys

from kubeadm_registry import __version__


def main() -> None:
    """Entry point of the program."""
    if sys.argv[1:] == ["--version"] and sys.stdout is not None:
        # Each run asks it of each node, to see that the program starts there: without the commands, in a fifth of the
        # time. Where it cannot be written, they say so.
        try:
            print(f"kubeadm-registry, version {__version__}", flush=True)  # noqa: T201  what prints is not imported yet
        except OSError:
            pass
        else:
            return
    from kubeadm_registry.cli.main import main as commands  # noqa: PLC0415  see above

    commands()


if __name__ == "__main__":
    main()
