"""Evaluation and export of a checkpoint."""
