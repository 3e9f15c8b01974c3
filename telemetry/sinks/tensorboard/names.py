"""Names of tags: those of strangers, made such that TensorBoard shows each as one curve.

In: any name.
Out: a tag that is one line of printable text, and never one that a tab has for itself.
Never: gives two names one tag.

A name that is fine is its tag. In all others whatever is not printable is
escaped (`\\x1b`), what is longer than TAG_MAX_CHARS is cut, and the name's hash
is put behind, as in `loss\\x00-1f3b5a`, since two names may look alike then.
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
"""Never written: without it TensorBoard compares the runs, and shows first what differs."""
START_TAG: Final = "_hparams_/session_start_info"
END_TAG: Final = "_hparams_/session_end_info"
RESERVED: Final = frozenset({LAYOUT_TAG, TABLE_TAG, START_TAG, END_TAG})


@lru_cache(maxsize=4096)
def cleaned_tag(name: str) -> str:
    """The tag of a name."""
    shown = clean(name.strip("/ "), TAG_MAX_CHARS) or NO_NAME
    if shown == name and name not in RESERVED:
        return name
    return f"{shown}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:6]}"
