"""The cluster file: what it may say, and what is wrong with one."""

from kubeadm_registry.config.model import (
    DEFAULT_FILE,
    SMALLEST,
    Node,
    RegistryCluster,
    Spec,
    Ssh,
    dump,
    file_text,
    from_object,
    load,
    parse,
)

__all__ = [
    "DEFAULT_FILE",
    "SMALLEST",
    "Node",
    "RegistryCluster",
    "Spec",
    "Ssh",
    "dump",
    "file_text",
    "from_object",
    "load",
    "parse",
]
