"""What retention needs from outside: the registry's holdings, what clusters use, and the ledger between two looks."""
