"""How long the agent waits for what. Apart from the rest, since the command line reads some of it, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Seconds, but for ``recover``. Measured defaults; change them together, on all nodes."""

    tick: float = 0.05  # between two decisions
    probe_interval: float = 0.1
    probe_deadline: float = 0.3  # a later answer proves life, not fitness
    canary_deadline: float = 0.4
    canary_interval: float = 0.2  # the manifest; each read costs frontend and storage as much as a client's
    blob_interval: float = 0.5
    proxy_interval: float = 0.2  # between two looks at what HAProxy's servers are
    door_interval: float = 1.0  # TLS to the public port
    heartbeat_interval: float = 0.1
    peer_silent: float = 0.35  # doubled by each false alarm, up to four times as long, until a minute was calm
    echo_window: float = 1.0  # a heartbeat that answers an older one of ours is stale
    destroy_interval: float = 0.5  # between two looks for stuck connections to a silent peer
    suspect: float = 0.3
    hung: float = 0.6  # silent for so long, and
    idle: float = 0.4  # no CPU time used for so long
    hung_busy: float = 5.0  # silent for so long, whatever it uses
    kill: float = 1.6
    recover: int = 3  # good answers in a row
    pause: float = 0.3  # the agent itself was not run for so long: what it knows is old
    warm_up: float = 0.5  # after the start nothing is moved for so long
    start_grace: float = 3.0  # a node that was never good waits so long before it is fit for want of a better one
    # Wrong or dead for so long, and another node reads well: give up the VIP. Longer than a process needs to be found
    # hung, killed and started again: meanwhile HAProxy here serves from the others, and a move of the VIP would break
    # every pull in flight (the new holder's kernel answers with RST, after which containerd does not resume).
    give_up: float = 4.0
    storage_give_up: float = 8.0
    # Readers lose nothing by a holder that is slow, for its HAProxy sends them elsewhere, and under full load the one
    # writer's server is the slowest for minutes: with 8 s the VIP moved four times in ten minutes.
    slow_give_up: float = 60.0
    settle: float = 0.4  # the VIP is held for so long before the node asks to write
    lease: float = 3.0  # a vote lasts so long after its node was last heard; longer than systemd's watchdog takes
    lease_margin: float = 0.5  # a writer ends so long before
    # The kernel's timer, in tests/simulation: it ends at the latest ``ticket`` + ``timer`` after a renewal was decided.
    timer: float = 2.0  # without a renewal the kernel keeps a frontend that could write from the storage
    ticket: float = 0.2  # a renewal reaches the kernel within so long after the agent began to decide on it, or never
    timer_slack: float = 0.1  # for the kernel's own rounding, and for clocks of different rates
    clock_off: float = 0.5  # a server whose wall clock is further from the others' than this does not write
    writable_interval: float = 1.0  # between two looks whether the writing frontend takes writes
    connect_interval: float = 5.0
    compare_interval: float = 10.0  # between two comparisons of all tables, which read the whole metadata
