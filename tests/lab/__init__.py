"""Real hosts with systemd and sshd on one machine, for tests and for people; docs/lab.md tells how to use them."""
