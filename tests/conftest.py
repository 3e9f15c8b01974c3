"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Other work shares these cores: a slow example is not a failed one.
settings.register_profile(
    "shared_cores", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared_cores")
