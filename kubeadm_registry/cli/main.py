"""The program: all commands, put together."""

from __future__ import annotations

from typing import NoReturn

import click

from kubeadm_registry import __version__
from kubeadm_registry.cli import (
    about,
    bundle,
    configuration,
    credentials,
    images,
    mirrors,
    rescue,
    seed,
    standard,
    status,
    workflows,
)
from kubeadm_registry.cli.command import Program

COMMANDS = (
    about.completion,
    about.version,
    workflows.init,
    workflows.preflight_command,
    workflows.verify,
    workflows.reset,
    bundle.group,
    configuration.group,
    credentials.ca,
    credentials.credentials,
    images.group,
    mirrors.group,
    rescue.group,
    seed.seed,
    status.status,
)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kubeadm-registry")
def cli() -> None:
    """Install and operate a highly available container registry for bare-metal Kubernetes.

    \b
    First run:
      kubeadm-registry bundle create --program garage=PATH   # on a machine with internet
      kubeadm-registry preflight && kubeadm-registry init    # on the air-gapped site, with ./cluster.yaml

    \b
    Exit codes:
      0  done, or nothing to do
      1  failed
      2  invalid file or command line (no node was contacted)
      3  preflight checks failed (nothing was changed)
      4  a node is unreachable or its host key is not trusted
      5  done, but degraded
    """


for one in COMMANDS:
    cli.add_command(one)


def main() -> NoReturn:
    """Entry point of the program."""
    standard.complete()
    cli.main(prog_name="kubeadm-registry")
