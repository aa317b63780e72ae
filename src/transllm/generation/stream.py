"""Turn ids that arrive one at a time into text that never shows half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Decodes a growing list of ids and hands on what is new and whole.

    Args:
        decode: ids to text.
        write: takes the new text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]) -> None:
        self._decode, self._write = decode, write
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        """One more id. A character whose last bytes are still to come is held back."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd") or not text.startswith(self._shown):
            return
        if len(text) > len(self._shown):
            self._write(text[len(self._shown):])
            self._shown = text

    def close(self) -> str:
        """Show what was held back, and give the whole text."""
        text = self._decode(self._ids)
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._write(text[len(self._shown):])
        return text
