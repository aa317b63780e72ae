"""The command line: one file a verb; each parses, calls one library function and prints."""

from __future__ import annotations

from transllm.cli.app import app, main

__all__ = ["app", "main"]
