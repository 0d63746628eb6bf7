"""The executor of retention: a program on the registry nodes that carries out orders, one at a time.

It runs on the node that holds the lease, and all that it changes goes through that node's own proxy, which compares the
term of the lease with each request. It knows no workloads; what it can check itself, it checks.
"""
