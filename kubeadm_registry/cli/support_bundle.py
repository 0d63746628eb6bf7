"""``support-bundle``: logs, configuration and state of all nodes in one archive, without secrets."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import yaml

from kubeadm_registry import config, support
from kubeadm_registry.access import session
from kubeadm_registry.bundle import temporary
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option
from kubeadm_registry.components.services import every_service
from kubeadm_registry.images.wanted import seconds
from kubeadm_registry.printable import counted

DEFAULT = Path("kubeadm-registry-support.tar.gz")
_HELP = "\b\nContents:\n" + "\n".join(f"  {name:<36}{what}" for name, what in support.contents(every_service()).items())


@command("support-bundle", writes_file=True, short_help="Collect logs and state into an archive", help_after=_HELP)
@file_option
@click.option(
    "--output-file",
    "file",
    type=click.Path(path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="The archive to write, mode 600.",
)
@click.option(
    "--since", default="24h", show_default=True, metavar="TIME", help="How far back the journals reach: 30m, 2h, 7d."
)
def support_bundle(context: Context, path: Path | None, file: Path, since: str) -> None:
    """Collect logs, configuration and state of all nodes into one archive, for a support request.

    Changes nothing on the nodes, and works while some are down. Secrets are masked; then every file is searched for
    each secret of the registry (plain, URL-quoted, base64, hexadecimal), and one that still contains a secret is left
    out. The archive contains names and addresses of your machines.

    \b
    Exit codes:
      0  written
      5  written, but a node did not respond, or a node or a file was left out
    """
    reach = seconds(since)
    temporary.target(file, [path or config.DEFAULT_FILE])  # before all nodes are asked
    cluster_file = config.load(path)
    reporter = context.reporter()
    reached, unreachable = session.attempt_all(cluster_file, terminal.prompts())
    text = yaml.safe_dump(cluster_file.model_dump(mode="json", by_alias=True), sort_keys=False)
    try:
        found = support.collect(cluster_file, reached, unreachable, text, reach)
    finally:
        for host in reached:
            host.transport.close()
    for name, why in unreachable.items():
        reporter.note(f"did not answer: {why}", host=name, level="warning")
    for name, why in found.untouched.items():
        reporter.note(f"nothing of it is in the archive: {why}", host=name, level="warning")
    for name, which in found.withheld.items():
        reporter.note(f"{name} is left out, because it still contained {', '.join(which)}", level="warning")
    made = support.write(file, found.files)
    reporter.result(
        f"{made.path}: {counted(made.files, 'file')}, {made.size / 1e6:.1f} MB; begin with index.md in it",
        file=str(made.path), files=made.files, bytes=made.size, unreachable=dict(unreachable),
        leftOut=found.withheld, missing=found.missing,
    )  # fmt: skip
    if unreachable or found.untouched or found.withheld:
        sys.exit(EXIT_DEGRADED)
