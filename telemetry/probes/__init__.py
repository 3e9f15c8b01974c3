"""Probes: what can be read of the machine, one kind of reading a module."""
