"""The translation chain-of-thought protocol: markers, rendering with loss masks, guiding what is written, parsing on token ids."""

from transllm.tcot.guide import Form, Guide, what_was_overruled
from transllm.tcot.parse import Chain, Kind, parse
from transllm.tcot.render import Message, Renderer, Span

__all__ = ["Chain", "Form", "Guide", "Kind", "Message", "Renderer", "Span", "parse", "what_was_overruled"]
