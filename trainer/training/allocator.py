"""Settings of the C library's allocator: the memory that one step frees is kept for the next.

This matters on a CPU only; on an accelerator torch keeps freed memory by itself. By default
glibc returns freed memory at the top of its heap to the kernel, and each step then has page
faults for its temporaries: a fifth of the time of a step of the small size.
"""

from __future__ import annotations

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_LARGEST_INT = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20
# The largest value that glibc accepts. Larger blocks are mapped, and unmapped, each time.
_MMAP_THRESHOLD_BYTES = 32 * 2**20


def keep_freed_memory() -> bool:
    """Make the process keep memory that it frees. False if the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _LARGEST_INT),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(*setting) for setting in settings)
