"""``python -m kubeadm_registry``."""

from kubeadm_registry.cli import main

main()
