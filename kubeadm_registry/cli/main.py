"""The program: which commands there are."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import NoReturn, cast

import click

from kubeadm_registry import __version__
from kubeadm_registry.cli import standard, start
from kubeadm_registry.cli.command import Program

#: Each command, and what it is in which module of this package.
COMMANDS = {
    "backup": ("backup", "backup"),
    "bundle": ("bundle", "group"),
    "ca": ("credentials", "ca"),
    "certs": ("certs", "group"),
    "completion": ("about", "completion"),
    "config": ("configuration", "group"),
    "credentials": ("credentials", "credentials"),
    "doctor": ("doctor", "doctor"),
    "images": ("images", "group"),
    "init": ("workflows", "init"),
    "join": ("members", "join"),
    "leave": ("members", "leave"),
    "mirrors": ("mirrors", "group"),
    "operator": ("operator", "group"),
    "preflight": ("workflows", "preflight_command"),
    "recover": ("recover", "recover"),
    "replace": ("members", "replace"),
    "rescue": ("rescue", "group"),
    "reset": ("workflows", "reset"),
    "restore": ("restore", "restore"),
    "retention": ("retention_runs", "group"),
    "seed": ("seed", "seed"),
    "status": ("status", "status"),
    "support-bundle": ("support_bundle", "support_bundle"),
    "upgrade": ("upgrade", "upgrade"),
    "verify": ("workflows", "verify"),
    "vip": ("vip", "group"),
    "version": ("about", "version"),
}


class Commands(Mapping[str, click.Command]):
    """The commands by name, each imported when it is asked for: half of a second is what all of them cost."""

    def __getitem__(self, name: str) -> click.Command:
        module, attribute = COMMANDS[name]
        command: click.Command = getattr(import_module(f"kubeadm_registry.cli.{module}"), attribute)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@click.group(
    cls=Program,
    commands=cast(MutableMapping[str, click.Command], Commands()),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="kubeadm-registry")
def cli() -> None:
    """Install and operate a highly available container registry for bare-metal Kubernetes.

    \b
    First run:
      kubeadm-registry bundle create --program garage=PATH \\
        --kubernetes-version v1.36.3     # with internet access
      kubeadm-registry preflight         # on site
      kubeadm-registry init
      kubeadm-registry seed

    \b
    Exit codes:
      0  done, or nothing to do
      1  failed
      2  invalid file, command line or name (nothing was changed)
      3  preflight checks failed (nothing was changed)
      4  a node is unreachable or its host key is not trusted
      5  done, but degraded
    """


def main() -> NoReturn:
    """Run the command that the command line names; this process is the program's own."""
    standard.complete()
    start.lean()
    try:
        cli.main(prog_name="kubeadm-registry")
    finally:
        # What is left goes with the process. Python would look through all of it for garbage first: a tenth of a run.
        gc.freeze()
