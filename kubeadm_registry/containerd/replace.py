"""Puts a new file in place of one of containerd's: what else hangs on the old one stays, and containerd accepts it."""

from __future__ import annotations

from kubeadm_registry.containerd.settings import Refused
from kubeadm_registry.containerd.survey import ConfigFile
from kubeadm_registry.errors import CommandFailed
from kubeadm_registry.transport.host import UNFINISHED, Host

#: Runs before the new file ``$1`` replaces the old one ``$2``: the new one gets the old one's extended attributes, ACL
#: and SELinux label, then mode ``$3`` and owner ``$4``. ``$6...`` is containerd, if it shall read the new one; it knows
#: the file by the path ``$5``, to which imports are relative, so where that is a link, it gets a link as well.
#: What it prints is the whole configuration; its errors matter. Status 65: it refuses the file.
_PREPARE = f"""
set -e
new=$1 old=$2 mode=$3 owner=$4 path=$5; shift 5
if [ -f "$old" ]; then
  cp --attributes-only --preserve=all --no-preserve=timestamps -- "$old" "$new"
  chown -- "$owner" "$new"
  chmod -- "$mode" "$new"
fi
[ $# -gt 0 ] || exit 0
cd /
if [ "${{old%/*}}" != "${{path%/*}}" ]; then
  link=$(mktemp -u --suffix={UNFINISHED} -- "${{path%/*}}/.${{path##*/}}.XXXXXXXXXX")
  trap 'rm -f -- "$link"' EXIT
  ln -s -- "$new" "$link"
  new=$link
fi
"$@" --config "$new" config dump > /dev/null || exit 65
"""


def replace(host: Host, file: ConfigFile, content: bytes, *, mode: int, owner: str, program: str = "") -> None:
    """Write *content* to *file*, which need not be there; a symbolic link stays one.

    With *program*, a containerd, that must read it first. Raises Refused with its words, and the file is as it was.
    """
    words = (program,) if program else ()
    prepare = ("sh", "-c", _PREPARE, "prepare", "{path}", file.real, f"{mode:o}", owner, file.path, *words)
    try:
        host.write(file.real, content, mode=mode, owner=owner, validate=prepare)
    except CommandFailed as error:
        if error.result.code != 65:
            raise
        said = error.result.stderr.decode(errors="replace").strip().rpartition("\n")[2].removeprefix("containerd: ")
        raise Refused(
            f"{file.path}: containerd rejects the file with the registry added: {said}; the file is unchanged",
            host=host.name,
            hint=f"check {file.path} for the cause",
        ) from error
