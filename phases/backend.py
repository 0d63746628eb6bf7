"""The replicated storage: installed on each server, formed once, seen whole from everywhere."""

from kubeadm_registry.cluster import leader
from kubeadm_registry.components import garage
from kubeadm_registry.engine.workflow import Phase
from kubeadm_registry.phases.immutable import SAME_CLUSTER

INSTALL = Phase("install", "Install Garage and start it", garage.install, checks=(SAME_CLUSTER,), one_at_a_time=True)
FORM = Phase("form", "Make one storage of the servers: layout, key, bucket", garage.form, on=leader)
JOINED = Phase("joined", "Wait until every server sees the storage whole", garage.joined)
BACKEND = Phase("backend", "Set up the replicated storage", phases=(INSTALL, FORM, JOINED))
