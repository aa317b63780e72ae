"""Memory that a file takes while nobody reads it."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux


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
