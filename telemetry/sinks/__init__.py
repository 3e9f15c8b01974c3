"""Sinks: readers of a journal that show it somewhere else."""
