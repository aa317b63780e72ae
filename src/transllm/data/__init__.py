"""Text: sources that stream pairs and documents, filters that count, the cut, languages and prompts.

What enters here is bytes from elsewhere; what leaves is clean text with a key for the held-out cut, and for every
source a report of what was read, kept and dropped, and why.
"""

from __future__ import annotations

from transllm.data.types import Counts, Document, MissingSourceError, Pair, SourceReport

__all__ = ["Counts", "Document", "MissingSourceError", "Pair", "SourceReport"]
