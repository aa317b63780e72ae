"""The command line: one file a verb; each parses, calls one library function and prints."""

from __future__ import annotations

import os

# Threads of OpenMP that wait for each other sleep rather than spin: where another process wants a core too, training was twice as
# fast so (90 -> 200 tokens a second on two cores), and as fast within the noise where none does. It is read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from transllm.cli.app import app, main

__all__ = ["app", "main"]
