"""Training of a ternary masked-language encoder: `python -m trainer --help`."""
