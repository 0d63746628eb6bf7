"""``backup``, and ``backup inspect | verify``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

import click

from kubeadm_registry import pki
from kubeadm_registry.backup import Backup, Contents, Identities, Passphrase, PublicKeys, read, write
from kubeadm_registry.backup.file import KEYS, NONE, PASSPHRASE, describe, writable
from kubeadm_registry.backup.gather import gather
from kubeadm_registry.cli import terminal
from kubeadm_registry.cli.command import EXIT_DEGRADED, Context, command, file_option
from kubeadm_registry.config import DEFAULT_FILE, file_text, parse
from kubeadm_registry.engine.report import echo, put
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.images.names import name_of
from kubeadm_registry.phases.immutable import same_cluster
from kubeadm_registry.printable import counted

passphrase_option = click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE",
    help="The first line of FILE is the passphrase.  [default: ask on the terminal]",
)  # fmt: skip
identity_option = click.option(
    "--identity", "identities", type=click.Path(path_type=Path), metavar="FILE", multiple=True,
    help="Decrypt with this private key: an age identity file, or an SSH key (ed25519 or rsa). May be repeated.",
)  # fmt: skip
ca_option = click.option(
    "--ca", type=click.Path(path_type=Path), metavar="FILE",
    help="Require a signature by this CA: the certificate that client nodes trust.",
)  # fmt: skip


@command(
    "backup",
    short_help="Back up secrets, configuration and image list",
    cls=click.Group,
    invoke_without_command=True,
    writes_file=True,
)
@click.option("--output-file", "file", type=click.Path(path_type=Path), help="File to write; required.")
@file_option
@passphrase_option
@click.option(
    "--recipient", "recipients", metavar="KEY", multiple=True,
    help="Encrypt for this public key: age1..., or an SSH key (ed25519 or rsa). May be repeated.",
)  # fmt: skip
@click.option(
    "--recipients-file", "lists", type=click.Path(path_type=Path), metavar="FILE", multiple=True,
    help="Encrypt for the public keys in FILE, one per line. May be repeated.",
)  # fmt: skip
@click.option("--no-encryption", is_flag=True, help="Write the secrets unencrypted.")
@click.option("--sign", metavar="KEY", type=click.Path(path_type=Path),
              help="Also sign the backup with this SSH key, as `bundle sign` does.")  # fmt: skip
@click.option("--no-images", is_flag=True, help="Do not list the images, for example while the registry is down.")
def backup(
    context: Context, file: Path | None, path: Path | None, passphrase_file: Path | None, recipients: tuple[str, ...],
    lists: tuple[Path, ...], no_encryption: bool, sign: Path | None, no_images: bool,
) -> None:  # fmt: skip
    """Write an encrypted file with everything that is needed to rebuild the registry after all nodes are lost.

    It contains the CA, the credentials and storage keys, the cluster file, the versions of the programs, and the names
    and digests of all images, but not the images themselves: `restore` loads these from bundles. One node may be
    unreachable.

    The file is encrypted with age, by a passphrase or for public keys, and signed by the cluster CA.

    \b
    Exit codes:
      0  the backup is written, and lists every image
      1  failed; an existing file is unchanged
      5  the backup is written, but does not list images that cannot be read,
         or its cluster file is not that of the registry
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    reporter = context.reporter()
    if file is None:
        raise ConfigError("no output file", hint="name it with -o FILE", code="UsageInvalid")
    writable(file, sign, [path or DEFAULT_FILE, *filter(None, (passphrase_file,)), *lists])
    lock = _lock(file, passphrase_file, recipients, lists, unencrypted=no_encryption)
    text = file_text(path)  # once: it may be a pipe
    with terminal.registry(parse(text, str(path or DEFAULT_FILE)), reporter) as (cluster, connect, _):
        for name, why in cluster.absent.items():
            reporter.note(f"{why}; its secrets were not compared with those of the others", host=name, level="warning")
        outdated = list(same_cluster(cluster, cluster.leader))
        contents, lost = gather(cluster, text, None if no_images else connect)
    missing = sorted((str(place), why) for place, why in lost.items())
    for name, why in missing:
        reporter.note(f"{name} is not in the list of images: {why}", level="warning")
    for flaw in outdated:
        reporter.note(f"the cluster file in it is not that of this registry: {flaw}", level="warning")
    index = write(file, contents, lock, sign)
    size = file.stat().st_size
    if lock is None:
        reporter.note(f"{file} is not encrypted: whoever reads it can push images and forge certificates",
                      level="warning")  # fmt: skip
    reporter.result(
        f"{file}: {size / 1e3:.0f} kB, {describe(index)}; {_held(contents)}",
        path=str(file), size=size, encryption=index.encryption, generation=index.generation, images=index.images,
        missing=[{"name": name, "reason": why} for name, why in missing], outdated=outdated,
    )  # fmt: skip
    if missing or outdated:
        sys.exit(EXIT_DEGRADED)


def _lock(
    file: Path, passphrase_file: Path | None, recipients: tuple[str, ...], lists: tuple[Path, ...], *,
    unencrypted: bool,
) -> PublicKeys | Passphrase | None:  # fmt: skip
    """How *file* is encrypted, as the options say; by a passphrase of this terminal if there are none."""
    if (passphrase_file is not None) + bool(recipients or lists) + unencrypted > 1:
        raise ConfigError(
            "a passphrase, public keys and --no-encryption are mutually exclusive", hint="pass one of them",
            code="UsageInvalid",
        )  # fmt: skip
    if unencrypted:
        return None
    if recipients or lists:
        return PublicKeys.of(recipients, lists)
    if passphrase_file is not None:
        return Passphrase.in_file(passphrase_file)
    if not sys.stdin.isatty():
        raise ConfigError(
            "no encryption method given, and there is no terminal to prompt for a passphrase",
            hint="pass --passphrase-file FILE, or --recipient KEY", code="UsageInvalid",
        )  # fmt: skip
    text = terminal.hidden(f"Passphrase for {file}: ")
    if not text or terminal.hidden("Repeat the passphrase: ") != text:
        why = "they differ" if text else "it is empty, or not UTF-8 text"
        raise ConfigError(f"no passphrase: {why}", hint="run the command again", code="PassphraseInvalid")
    return Passphrase(text)


def key_for(
    backup: Backup, passphrase_file: Path | None, identities: tuple[Path, ...]
) -> Passphrase | Identities | None:
    """The key to *backup* that the options name, or this terminal; None also if neither does."""
    if identities and passphrase_file is not None:
        raise ConfigError("--identity and --passphrase-file are mutually exclusive", code="UsageInvalid",
                          hint="pass the one that the backup was encrypted for")  # fmt: skip
    if identities:
        return Identities(identities, terminal.prompts().passphrase)
    if passphrase_file is not None:
        return Passphrase.in_file(passphrase_file)
    if backup.index.encryption == PASSPHRASE and sys.stdin.isatty():
        text = terminal.hidden(f"Passphrase for {backup.path}: ")
        return None if text is None else Passphrase(text)
    return None


def _held(contents: Contents) -> str:
    images = "no list of images" if contents.images is None else counted(len(contents.images), "image")
    return f"{counted(len(contents.members), 'node')}, {images}"


@command("inspect", parent=cast(click.Group, backup), short_help="Show what is in a backup")
@click.argument("file", type=click.Path(path_type=Path))
@identity_option
@passphrase_option
@click.option("--cluster-file", is_flag=True, help="Print the cluster file in the backup, and nothing else.")
def inspect(
    context: Context, file: Path, identities: tuple[Path, ...], passphrase_file: Path | None, cluster_file: bool
) -> None:
    """Show the registry, date and recipients of the backup FILE, without secrets.

    With its key or passphrase, also show the nodes, programs and images in it.
    """
    found = read(file)
    index = found.index
    given = bool(identities or passphrase_file or cluster_file) or index.encryption == NONE
    contents = found.opened(key_for(found, passphrase_file, identities)) if given else None
    if cluster_file and contents is not None:
        put(contents.cluster_file)
        return
    if context.output == "json":
        echo(json.dumps(_described(found, contents)))
        return
    echo(f"registry  {index.cluster}, generation {index.generation}")
    echo(f"made      {index.made} by kubeadm-registry {index.release}")
    echo(f"CA        SHA256 {pki.printed_fingerprint(index.ca)}, expires {pki.expiry(index.ca):%Y-%m-%d}")
    echo(f"signed    by this CA{', and by an SSH key' if found.ssh_signature is not None else ''}")
    echo(f"content   {describe(index)}")
    for key in index.recipients:
        echo(f"          {key}")
    if contents is None:
        images = "no list of images" if index.images is None else counted(index.images, "image")
        which = "--passphrase-file" if index.encryption == PASSPHRASE else "--identity"
        echo(f"          {counted(index.nodes, 'node')}, {images}; {which} FILE lists them")
        return
    for member in contents.members:
        echo(f"node      {member.name:<14} {member.address}")
    for program in contents.programs:
        echo(f"program   {program.name:<14} {program.version}")
    for image in contents.images or ():
        echo(f"image     {name_of(image.repository, image.tag)}  {image.digest}")
    for pin in contents.pins:
        echo(f"pin       {pin.name}  {pin.reason}")


def _described(found: Backup, contents: Contents | None) -> dict[str, object]:
    """For machines."""
    index = found.index
    described: dict[str, object] = {
        "cluster": index.cluster, "generation": index.generation, "made": index.made, "release": index.release,
        "ca": index.ca, "encryption": index.encryption, "recipients": list(index.recipients),
        "signedBySshKey": found.ssh_signature is not None, "imageCount": index.images, "nodeCount": index.nodes,
    }  # fmt: skip
    if contents is not None:
        described |= {
            "clusterFile": contents.cluster_file,
            "nodes": [{"name": one.name, "address": one.address} for one in contents.members],
            "programs": [asdict(one) for one in contents.programs],
            "images": None if contents.images is None
            else [{"name": name_of(one.repository, one.tag), "digest": one.digest} for one in contents.images],
            "pins": [asdict(one) for one in contents.pins],
        }  # fmt: skip
    return described


@command("verify", parent=cast(click.Group, backup), short_help="Verify signatures and content of a backup")
@click.argument("file", type=click.Path(path_type=Path))
@identity_option
@passphrase_option
@ca_option
@click.option("--key", type=click.Path(path_type=Path), help="Require a signature by this SSH key: a public key or an "
              "allowed-signers file.")  # fmt: skip
def verify(
    context: Context, file: Path, identities: tuple[Path, ...], passphrase_file: Path | None, ca: Path | None,
    key: Path | None,
) -> None:  # fmt: skip
    """Verify that FILE is complete and signed and, with its key or passphrase, that it can be restored.

    Without --ca and --key, the signature is compared only with the CA that FILE itself names.
    """
    reporter = context.reporter()
    found = checked(file, ca, key, context)
    given = bool(identities or passphrase_file) or found.index.encryption == NONE
    if given:
        held = _held(found.opened(key_for(found, passphrase_file, identities)))
    else:
        held = "its content was not read"
        which = "--identity FILE" if found.index.encryption == KEYS else "--passphrase-file FILE"
        reporter.note(f"pass {which} to read the content as well", level="warning")
    reporter.result(f"{file}: OK ({describe(found.index)}, {held})", path=str(file), content=given)


def checked(file: Path, ca: Path | None, key: Path | None, context: Context) -> Backup:
    """The backup in *file*, made by the CA in the file *ca* and signed by the SSH key in *key* where they are given."""
    found = read(file)
    if ca is not None:
        found.require_ca(ca)
    if key is not None:
        context.reporter().note(f"{file} is signed by {found.signer(key)}")
    return found
