"""Engines that answer prompts: those that continue token ids, and those that go on with conversations."""

from transllm.generation.conversation import Conversation, ConversationEngine, Finish, Reply, ReplySampling, Turn
from transllm.generation.engine import REPETITION_PENALTY, Engine, Generated, Sampling
from transllm.generation.in_process import TransformersEngine
from transllm.generation.local import LocalEngine
from transllm.generation.stream import TextStream

__all__ = ["REPETITION_PENALTY", "Conversation", "ConversationEngine", "Engine", "Finish", "Generated", "LocalEngine", "Reply",
           "ReplySampling", "Sampling", "TextStream", "TransformersEngine", "Turn"]
