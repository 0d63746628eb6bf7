"""One archive with all that somebody needs who is asked for help: logs, configuration, state, without secrets."""

from kubeadm_registry.support.archive import Archive, write
from kubeadm_registry.support.collection import CONTENTS, collect

__all__ = ["CONTENTS", "Archive", "collect", "write"]
