"""What other libraries say, in sentences of ours."""

from __future__ import annotations

import pytest

from transllm.errors import first_line


@pytest.mark.parametrize(("error", "line"), [
    (OSError("No such file."), "No such file"),
    (ValueError("\nbad value\nsee https://x.org"), "bad value"),
    (RuntimeError(""), "RuntimeError"),
    (ImportError("  "), "ImportError"),
])
def test_an_error_without_words_still_says_what_it_is(error: Exception, line: str) -> None:
    assert first_line(error) == line
