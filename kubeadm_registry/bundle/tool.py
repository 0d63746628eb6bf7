"""The script that gets this program out of a bundle that has it, with nothing but tar, gzip and sha256sum."""

from __future__ import annotations

import re

from kubeadm_registry.bundle.programs import Program, slug
from kubeadm_registry.oci import descriptors as oci
from kubeadm_registry.oci.references import OWN, OWN_HOST

NAME = "kubeadm-registry"
#: What starts a module of this package on a node, as ``python -m`` does: ``MODULE ARGUMENT...``. Below its prefix.
MODULE = "bin/kubeadm-registry-module"
#: The operator's image, which is made of the same tree: its name in a bundle, and its repository in the registry.
OPERATOR_IMAGE = f"{OWN_HOST}/operator"
OPERATOR_REPOSITORY = f"{OWN}/operator"
#: ``found`` is compared with ``[``, because busybox's sha256sum has no --quiet.
UNPACK = """\
#!/bin/sh
# Unpacks kubeadm-registry from the bundle it is in. Needs tar, gzip and sha256sum; those of busybox will do.
#   tar -xOf BUNDLE unpack.sh | sh -s BUNDLE [DIRECTORY]
set -eu
bundle=${{1:?give the path of the bundle}}
directory=${{2:-kubeadm-registry-{version}}}
mkdir -p "$directory"
layer=$directory/layer.tar.gz
trap 'rm -f "$layer"' EXIT
tar -xOf "$bundle" {blob} > "$layer"
found=$(sha256sum < "$layer")
if [ "${{found%% *}}" != {sum} ]; then
    echo "$bundle is damaged: nothing was unpacked" >&2
    exit 1
fi
tar -xzf "$layer" -C "$directory"
echo "start it as $directory/bin/kubeadm-registry"
"""
#: What release 0.1 wrote. Its bundles do not say what their script is, so this is what it must be.
UNPACK_0_1 = """\
#!/bin/sh
# The tool that this bundle is for, out of the bundle, with nothing but tar, gzip and sha256sum:
#   tar -xOf BUNDLE unpack.sh | sh -s BUNDLE [FOLDER]
set -eu
bundle=${{1:?give the path of the bundle}}
folder=${{2:-kubeadm-registry-{version}}}
mkdir -p "$folder"
layer=$folder/layer.tar.gz
tar -xOf "$bundle" {blob} > "$layer"
echo "{sum}  $layer" | sha256sum -c --quiet
tar -xzf "$layer" -C "$folder"
rm "$layer"
echo "start it as $folder/bin/kubeadm-registry"
"""
#: The file of a bundle that has this script.
UNPACK_FILE = "unpack.sh"


def unpack_script(program: Program, template: str = UNPACK) -> bytes:
    """The script that unpacks *program*, the tool, from a bundle that has it."""
    blob = oci.blob_name(program.digest)
    parts = {"version": slug(program.version), "blob": blob, "sum": program.digest.removeprefix("sha256:")}
    return template.format(**parts).encode()


def operator_tag(version: str) -> str:
    """The tag of the operator's image for that *version* of this program: a tag takes no ``+``."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", version)
