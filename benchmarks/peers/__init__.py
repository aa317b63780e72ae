"""The contenders of benchmarks/training.py, each a process of its own, and what makes them comparable."""

import os

GIVEN = dict(os.environ)
"""The environment before transllm was imported, which sets what torch reads from it: peers are to have what their users have."""
