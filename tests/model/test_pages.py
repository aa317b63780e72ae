import platform
import resource

import psutil
import pytest
import torch

from transllm.model.pages import keeping_freed

_BYTES = 64 << 20  # more than glibc would keep


def _faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(_BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("again", [False, True])
def test_what_is_freed_is_there_for_the_next_and_given_back_afterwards(again: bool) -> None:
    if again:
        with pytest.raises(ValueError, match="inside"), keeping_freed():
            raise ValueError("inside")
    with keeping_freed():
        assert min(_faults() for _ in range(6)) < 100, "of 16,384 pages; the first of a size find their place yet"
        kept = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss <= kept - _BYTES
