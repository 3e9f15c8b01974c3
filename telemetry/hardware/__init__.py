"""Hardware: the sampler's process, and the probes that it reads, one kind a module."""
