"""Memory that a training step frees is kept for the next step instead of being given back to the kernel."""

from __future__ import annotations

import ctypes
import platform

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep up to 1 GiB of freed memory in the process; True if it obeys, False where it is another.

    By default every tensor of over 32 MiB (at first, of over 128 KiB) is mapped afresh and unmapped when freed, so that the
    kernel zeroes its pages and takes a fault for each: at 128 experts, whose gradients are 200 MB a step, that costs more than
    the products that fill them. With this, tensors of up to 512 MiB come from the heap, and the heap shrinks only when more
    than 1 GiB at its end is free. The price: up to 1 GiB that is free stays with the process, and since tensors no longer have
    mappings of their own, free memory between two that live stays too. It holds for the whole process and cannot be undone in
    it; a second call changes nothing. Linux with glibc only: elsewhere (musl, jemalloc by LD_PRELOAD, macOS, Windows)
    nothing happens. It does not touch the GPU's memory. See mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Older releases of glibc refuse a mapping threshold above 32 MiB; then nothing is changed.
    return bool(mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
