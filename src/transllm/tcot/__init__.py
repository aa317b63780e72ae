"""The translation chain-of-thought protocol: markers, rendering with loss masks, parsing on token ids, repair."""

from transllm.tcot.parse import Chain, Kind, parse, repaired
from transllm.tcot.render import Message, Renderer, Span

__all__ = ["Chain", "Kind", "Message", "Renderer", "Span", "parse", "repaired"]
