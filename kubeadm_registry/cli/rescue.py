"""``rescue serve``: a registry for reading, straight from a bundle."""

from __future__ import annotations

import re
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import click

from kubeadm_registry import paths
from kubeadm_registry.addresses import endpoint, ip
from kubeadm_registry.bundle import opened
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import BUNDLE_KEY, Context, command
from kubeadm_registry.components import haproxy
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images import rescue
from kubeadm_registry.printable import counted


@click.group("rescue", short_help="Serve images when the registry is down")
def group() -> None:
    """Serve images from a bundle when the registry is unavailable."""


@command("serve", parent=group, short_help="Serve a bundle's images, read-only")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--listen", metavar="[ADDRESS]:PORT", default=f":{paths.REGISTRY_PORT}", show_default=True,
    help="Address and port to listen on. Without an address: all IPv4 and IPv6 addresses.",
)  # fmt: skip
@click.option(
    "--cert", type=click.Path(path_type=Path), default=Path(paths.NODE_PEM), show_default=True,
    help="Certificate for the virtual IP, in PEM format, with its key in the same file or in that of --key.",
)  # fmt: skip
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Private key of the certificate, in PEM format, if it is in another file.",
)
@click.option(
    "--auth-map", "auth_map", type=click.Path(path_type=Path), metavar="FILE",
    help=f"Require the credentials in this file ({haproxy.AUTH_MAP} on a registry node).  [default: no authentication]",
)  # fmt: skip
@click.option(
    "--bundle-key", "signers", type=click.Path(path_type=Path), envvar=BUNDLE_KEY,
    help="Require a signature by this SSH key: a public key or an allowed-signers file.  "
    f"[env: {BUNDLE_KEY}]",
)  # fmt: skip
def serve(
    context: Context, bundle: Path, listen: str, cert: Path, key: Path | None, auth_map: Path | None,
    signers: Path | None,
) -> None:  # fmt: skip
    """Serve the images of a bundle from this host, read-only. Press Ctrl-C to stop.

    Image names and certificate are those of the registry, so containerd on the nodes pulls from this host once it has
    the virtual IP: `ip address add VIP/32 dev eth0` (/128 for IPv6). Run it as root on a registry node whose own
    services are stopped, or on any host with --cert and --key.
    """
    reporter = context.reporter()
    address, port = where(listen)
    tls = rescue.certificate(cert, key)
    who = rescue.logins(auth_map) if auth_map is not None else frozenset()
    requests = count()

    def told(client: str, line: str) -> None:
        next(requests)
        reporter.note(line, host=client)

    with ExitStack() as stack:
        held = stack.enter_context(opened(bundle, terminal.bundle_key(signers), reporter.note))
        server = stack.enter_context(rescue.Server(address, port, held, tls, logins=who, told=told))
        if held.layout.lineage.left_out:
            raise ConfigError(
                f"{bundle} is a delta, which omits blobs of its base bundle", code="BundleBaseMissing",
                hint="serve a full bundle",
            )  # fmt: skip
        if not server.repositories:
            raise ConfigError(f"{bundle} contains no images", code="BundleEmpty", hint="serve a bundle with images")
        images = len(held.images)
        at = endpoint(address or "*", server.server_port)
        reporter.note(f"serving {counted(images, 'image')} of {bundle} at {at}; press Ctrl-C to stop")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            answered = next(requests)
            reporter.result(f"answered {counted(answered, 'request')}", requests=answered)


def where(listen: str) -> tuple[str, int]:
    """Address (empty: all) and port of ``ADDRESS:PORT``, ``[ADDRESS]:PORT``, ``:PORT`` or ``ADDRESS``.

    Raises ConfigError.
    """
    if ip(listen) is not None:
        return listen, paths.REGISTRY_PORT
    address, _, port = listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not (re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65535 and (not address or ip(address) is not None)):
        raise ConfigError(f"--listen {listen}: must be ADDRESS:PORT, [IPv6]:PORT or :PORT", code="UsageInvalid")
    return address, int(port)
