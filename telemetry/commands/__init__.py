"""Commands that work on recorded runs, or that start a command beside a sidecar."""
