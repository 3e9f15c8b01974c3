"""Views: journals read into series of values by name, for screens and for people's questions."""
