"""Training of a ternary masked-language encoder: `python -m trainer --help`."""

from shared import moved

moved.install()
