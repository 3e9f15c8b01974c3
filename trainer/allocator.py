"""The C library's allocator: memory that one step frees is there for the next.

In: nothing.
Out: whether the allocator could be told.
Never: matters on an accelerator, whose memory torch keeps by itself.

glibc gives what is freed at the top of its heap back to the kernel, and each step then
faults the pages of its temporaries in anew: a fifth of a step of the small size on a CPU.
"""

from __future__ import annotations

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_LARGEST_INT = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20
# The largest that glibc takes; what is larger is mapped, and given back, each time.
_MMAP_THRESHOLD_BYTES = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let the process keep what it has had. False where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _LARGEST_INT),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(*setting) for setting in settings)
