"""Tests of kubeadm-registry: hermetic ones in ``unit``, and ``lab`` with real hosts."""
