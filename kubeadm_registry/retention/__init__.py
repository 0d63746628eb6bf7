"""Which images may be deleted: a pure function of what the registry holds, what is in use, a policy and the time."""
