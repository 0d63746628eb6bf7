"""``version | completion``: about the program itself."""

from __future__ import annotations

import json

import click
from click.shell_completion import get_completion_class

from kubeadm_registry import __version__
from kubeadm_registry.cli.command import Context, command
from kubeadm_registry.engine.report import put

NAME = "kubeadm-registry"
#: The variable by which a shell asks for completions; click derives the same name.
_VARIABLE = "_KUBEADM_REGISTRY_COMPLETE"


@command("version", short_help="Print the version")
def version(context: Context) -> None:
    """Print the version of this program."""
    put(json.dumps({"version": __version__}) + "\n" if context.output == "json" else f"{NAME} {__version__}\n")


@command("completion", short_help="Print a shell completion script")
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
def completion(context: Context, shell: str) -> None:
    """Print a shell completion script.

    \b
    Examples:
      kubeadm-registry completion bash > /etc/bash_completion.d/kubeadm-registry
      kubeadm-registry completion zsh > ~/.zfunc/_kubeadm-registry
      cd ~/.config/fish/completions
      kubeadm-registry completion fish > kubeadm-registry.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  click has these three
    script = found(click.get_current_context().find_root().command, {}, NAME, _VARIABLE).source()
    put(json.dumps({"shell": shell, "script": script}) + "\n" if context.output == "json" else script)
