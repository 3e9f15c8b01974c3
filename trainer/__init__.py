"""Training of a ternary masked-language encoder: `python -m trainer --help`."""

import sys

# Under `-m`, `shared` may be a folder of the user's own until __main__ has put ours first.
if sys.argv[:1] != ["-m"]:
    from shared import moved

    moved.install()
