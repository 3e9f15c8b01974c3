"""Tag names: any name, changed so that TensorBoard shows it as one curve of its own.

In: any name.
Out: a tag that is one line of printable text, and none that a tab reserves.
Never: gives two names one tag.

A name that needs no change is its own tag. In all others unprintable characters
are escaped (`\\x1b`), text beyond TAG_MAX_CHARS is cut, and a hash of the name is
appended, as in `loss\\x00-1f3b5a`, because two names may then look the same.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from shared.text import clean

TAG_MAX_CHARS: Final = 200
NO_NAME: Final = "(no name)"
LAYOUT_TAG: Final = "custom_scalars__config__"
TABLE_TAG: Final = "_hparams_/experiment"
"""Tag that is never written: without it TensorBoard itself shows first the values that differ."""
START_TAG: Final = "_hparams_/session_start_info"
END_TAG: Final = "_hparams_/session_end_info"
RESERVED: Final = frozenset({LAYOUT_TAG, TABLE_TAG, START_TAG, END_TAG})


@lru_cache(maxsize=4096)
def cleaned_tag(name: str) -> str:
    """Return the tag for a name."""
    shown = clean(name.strip("/ "), TAG_MAX_CHARS) or NO_NAME
    if shown == name and name not in RESERVED:
        return name
    return f"{shown}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:6]}"
