"""A real Kubernetes on the lab's hosts, by kubeadm, with every image from the registry."""
