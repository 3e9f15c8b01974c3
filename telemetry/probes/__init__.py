"""Probes: readings of the machine's hardware, one kind a module."""
