"""Values of a script, reduced to what an event can record; the rest is left out by name."""
