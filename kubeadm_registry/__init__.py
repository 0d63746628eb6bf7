"""A container registry for bare-metal Kubernetes that is there before the cluster is."""

__version__ = "0.2.0.dev0"
