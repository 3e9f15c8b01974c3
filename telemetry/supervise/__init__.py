"""Supervision: child processes for sinks and sampler, and the removal of old runs."""
