"""What every node has before its services: users, folders, the slice, and the script that notes a unit's files."""

from __future__ import annotations

from kubeadm_registry.cluster import Cluster
from kubeadm_registry.components.services import users
from kubeadm_registry.engine.changes import NO_RESTART, RECORD_START, STARTED, Directory, File, Steps
from kubeadm_registry.engine.phase import Phase
from kubeadm_registry.engine.render import render
from kubeadm_registry.engine.users import User
from kubeadm_registry.paths import ETC, LIBEXEC, OPT, PROGRAMS, SLICE, UNITS
from kubeadm_registry.transport.host import Host

_RECORD_START = f"""\
#!/bin/sh
# Written by kubeadm-registry. Usage: record-start UNIT FILE...
# Notes with which files UNIT starts, so that a later run sees whether it is stale.
set -eu
unit=$1; shift
umask 022
notes=$(for file; do
  [ -f "$file" ]
  digest=$(LC_ALL=C sed '/ {NO_RESTART}$/d' -- "$file" | sha256sum)
  echo "${{digest%% *}}  $file"
done)
# Where there is no room for it UNIT starts all the same, without a note: a later run starts it again.
if mkdir -p {STARTED} && echo "$notes" > "{STARTED}/.$unit" && mv -f -- "{STARTED}/.$unit" "{STARTED}/$unit"; then
  exit 0
fi
rm -f -- "{STARTED}/.$unit" "{STARTED}/$unit"
""".encode()


def install(cluster: Cluster, _: Host) -> Steps:
    """Create users, folders, the slice and the helper script."""
    for service in users(cluster.spec):
        yield User(service.user, groups=service.groups)
    for path in (ETC, OPT, PROGRAMS, LIBEXEC):
        yield Directory(path)
    yield Directory(cluster.spec.data_directory, as_is=True)
    yield File(RECORD_START, _RECORD_START, mode=0o755)
    yield File(f"{UNITS}/{SLICE}", render(f"units/{SLICE}.j2"))


BASE = Phase("base", "Create users, directories and the systemd slice", install)
