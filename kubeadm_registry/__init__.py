"""A highly available container registry for bare-metal Kubernetes."""

__version__ = "0.2.0.dev0"
