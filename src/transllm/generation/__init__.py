"""Engines that answer prompts: those that continue token ids, and those that go on with conversations."""

from transllm.generation.conversation import Conversation, ConversationEngine, Finish, Reply, ReplySampling, Turn, numbered
from transllm.generation.engine import REPETITION_PENALTY, Engine, Generated, Sampling
from transllm.generation.fastest import Choice, engine_for, fastest, tokens_per_second
from transllm.generation.in_process import TransformersEngine
from transllm.generation.llama_cpp import LlamaCppEngine
from transllm.generation.local import LocalEngine
from transllm.generation.open_engine import EngineSpec, open_engine, require_engine
from transllm.generation.ray_engine import RayEngine
from transllm.generation.server import ServerEngine
from transllm.generation.stream import TextStream
from transllm.generation.vllm import VllmEngine

__all__ = ["REPETITION_PENALTY", "Choice", "Conversation", "ConversationEngine", "Engine", "EngineSpec", "Finish", "Generated",
           "LlamaCppEngine", "LocalEngine", "RayEngine", "Reply", "ReplySampling", "Sampling", "ServerEngine", "TextStream",
           "TransformersEngine", "Turn", "VllmEngine", "engine_for", "fastest", "numbered", "open_engine", "require_engine",
           "tokens_per_second"]
