"""What is wrong with a registry now, in plain words, with the line that shows it and the command that fixes it.

``examine`` asks the nodes, side by side, and makes a ``Snapshot`` of what they say; ``diagnose`` is a pure function of
it, a table of rules. Nothing is changed anywhere.
"""

from kubeadm_registry.doctor.diagnosis import Diagnosis, diagnose
from kubeadm_registry.doctor.examination import examine
from kubeadm_registry.doctor.finding import Command, Finding, Kind
from kubeadm_registry.doctor.snapshot import Snapshot

__all__ = ["Command", "Diagnosis", "Finding", "Kind", "Snapshot", "diagnose", "examine"]
