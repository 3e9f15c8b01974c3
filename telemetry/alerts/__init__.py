"""Alerts: conditions that people should know of, and the ways in which they are told."""
