"""Checks of `telemetry doctor`: each looks at one part of the machine, and changes nothing."""
