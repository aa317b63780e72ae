"""The contenders of benchmarks/training.py, each a process of its own, and what makes them comparable."""
