"""The node agent: sees what is alive and right on one server, and tells HAProxy, keepalived and the other agents.

Standard library only, Python 3.9 or newer, no import from the rest of the project: it is shipped as one zipapp.

    model      what is seen, said and decided (values only)
    rules      what follows from what was seen: pure functions of (memory, observation, now)
    lease      which single node may write: votes in the heartbeats, pure as well
    heartbeat  the datagrams between agents: who may be believed, and what is old
    formats    which release may read and write a record
    document   what an agent tells of itself, also to the command line
    timings    how long it waits for what
    config     the file given on the command line
    exchange, probes, haproxy, peers, netlink, processes, pressure, guard, hardstate    the hands and eyes
    daemon     the loop that joins them
"""
