"""Engines that answer prompts, behind one interface."""

from transllm.generation.engine import REPETITION_PENALTY, Engine, Generated, Sampling
from transllm.generation.local import LocalEngine
from transllm.generation.stream import TextStream

__all__ = ["REPETITION_PENALTY", "Engine", "Generated", "LocalEngine", "Sampling", "TextStream"]
