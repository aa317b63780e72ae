"""Engines that answer prompts, behind one interface."""

from transllm.generation.engine import LOOP, Engine, Generated, Sampling
from transllm.generation.local import LocalEngine
from transllm.generation.stream import TextStream

__all__ = ["LOOP", "Engine", "Generated", "LocalEngine", "Sampling", "TextStream"]
