"""Checks that hold the engine to its promises: the invariants on this machine, and two runs against each other."""
