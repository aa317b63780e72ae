"""Pages of memory: of a file that nobody reads any more, and of what is freed only to be taken again."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import sys
from collections.abc import Iterator

from torch import Tensor

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's mallopt
_MOST = 2**31 - 1
_USUAL_TRIM, _USUAL_MAX = 64 << 20, 65536


def forget(weight: Tensor) -> None:
    """Tell the system that a weight will not be read again where it lies now.

    Weights of a loaded model are pages of its file: they stay in memory for as long as the file is mapped, which is as long as any other
    weight of it is in use. This is advice: what is read again after all is there again, and other systems than Linux are told nothing.
    """
    if sys.platform != "linux" or weight.device.type != "cpu" or not weight.is_contiguous():
        return
    start, stop = weight.data_ptr(), weight.data_ptr() + weight.numel() * weight.element_size()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (stop - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if whole > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), _PAGE_OUT)


def give_back_freed() -> None:
    """Let the system have what was freed: glibc keeps it in every thread's arena."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


@contextlib.contextmanager
def keeping_freed() -> Iterator[None]:
    """Let this process keep what is freed inside the ``with``, for whoever asks next.

    glibc maps what is larger than 32 MiB anew each time, and gives back the end of its heap: a long row's tensors come back page by page,
    each zeroed at the fault of its first use. A training step frees what the next one takes; the peak is at most a tenth higher
    (docs/architecture.md). Afterwards all is given back. Nothing happens where there is no glibc.
    """
    glibc = _glibc()
    if not glibc:
        yield
        return
    glibc.mallopt(_MMAP_MAX, 0)
    glibc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        glibc.mallopt(_MMAP_MAX, _USUAL_MAX)
        glibc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        give_back_freed()


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
