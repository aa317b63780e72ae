"""What importing the library sets in the environment, for torch to read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SET = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize(("given", "kept"), [({}, str(min(1024, 64 * (os.cpu_count() or 1)))), ({SET: "7"}, "7")])
def test_kernels_that_are_kept_are_bounded_unless_somebody_said_otherwise(given: dict[str, str], kept: str) -> None:
    """Memory of a long run would grow with each new shape."""
    environment = {name: value for name, value in os.environ.items() if name != SET} | given
    found = subprocess.run([sys.executable, "-c", f"import transllm, os; print(os.environ[{SET!r}])"], env=environment,
                           capture_output=True, text=True, check=True)
    assert found.stdout.strip() == kept
