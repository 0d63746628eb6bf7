"""One archive with all that somebody needs who is asked for help: logs, configuration, state, without secrets."""

from kubeadm_registry.support.archive import Archive, write
from kubeadm_registry.support.collection import collect, contents

__all__ = ["Archive", "collect", "contents", "write"]
