"""Wanted states of hosts, the steps that bring them about, and what a run tells of it."""
