"""Access to what a cluster file describes: its nodes, their secrets and programs, and the registry they serve."""
