"""What other libraries say, in sentences of ours."""

from __future__ import annotations

import pytest

from transllm.errors import first_line, kind_and_line


@pytest.mark.parametrize(("error", "line", "with_kind"), [
    (OSError("No such file."), "No such file", "OSError: No such file"),
    (ValueError("\nbad value\nsee https://x.org"), "bad value", "ValueError: bad value"),
    (RuntimeError(""), "RuntimeError", "RuntimeError"),
    (ImportError("  "), "ImportError", "ImportError"),
])
def test_an_error_without_words_still_says_what_it_is(error: Exception, line: str, with_kind: str) -> None:
    assert first_line(error) == line
    assert kind_and_line(error) == with_kind
