"""The agents in a simulated world: a discrete-event simulation of servers, network, kernel timer, systemd and zot.

What decides is the product's own code (``kubeadm_registry.agent``: rules, lease, steering, heartbeat); what it decides
about are models. docs/simulation.md says what is promised, what is modelled, and what came of it.
"""
