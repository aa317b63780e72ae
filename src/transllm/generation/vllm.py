"""vLLM in this process as an engine of conversations: the extra ``vllm``, for CUDA.

Written against vLLM 0.33 (``LLM.generate`` on prompts of token ids) and **not run where it was written**: no GPU was at hand. What does run
there is that its absence, and that of CUDA, is an error before the work.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from transllm.errors import MissingExtraError, ModelError
from transllm.generation.conversation import Conversation, Reply, ReplySampling, reply_seeds
from transllm.generation.in_process import prompt_ids
from transllm.model import ChatTokenizer

_AT_ONCE = 1024  # prompts in one call: vLLM gives replies when all of a call are done


class VllmEngine:
    """Goes on with conversations with vLLM.

    Args:
        model: a Hugging Face folder, or a hub id.
        chat: the tokenizer of the same model.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: there is no CUDA device, or vLLM cannot load the model.
    """

    name = "vllm"

    def __init__(self, model: Path | str, chat: ChatTokenizer) -> None:
        require_vllm()
        from vllm import LLM

        self._chat = chat
        try:
            self._llm: Any = LLM(str(model), tokenizer=str(model), tensor_parallel_size=torch.cuda.device_count(), seed=0)
        except (RuntimeError, ValueError, OSError) as error:
            said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise ModelError(f"vLLM cannot load '{model}': {said[0]}. Set recover.engine to 'transformers'.") from error
        self._context = min(chat.context, int(self._llm.llm_engine.model_config.max_model_len))

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``. Replies come in blocks."""
        from vllm import SamplingParams

        prompts = [prompt_ids(self._chat.tokenizer, conversation) for conversation in conversations]
        seeds = reply_seeds(conversations, sampling.seed)
        fitting = [number for number, ids in enumerate(prompts) if len(ids) < self._context]
        for number in sorted(set(range(len(prompts))) - set(fitting)):
            yield Reply(number, "", (), "too long", len(prompts[number]), 0)
        for start in range(0, len(fitting), _AT_ONCE):
            block = fitting[start: start + _AT_ONCE]
            how = [SamplingParams(max_tokens=min(sampling.max_new_tokens, self._context - len(prompts[number])),
                                  temperature=sampling.temperature, top_p=sampling.top_p, stop_token_ids=sorted(self._chat.stops),
                                  seed=seeds[number] if sampling.temperature else None) for number in block]
            made = self._llm.generate([{"prompt_token_ids": prompts[number]} for number in block], how, use_tqdm=False)
            for number, request in zip(block, made, strict=True):
                yield self._reply(number, len(prompts[number]), list(request.outputs[0].token_ids), request.outputs[0].finish_reason)

    def close(self) -> None:
        """Give back the device's memory."""
        self._llm = None
        torch.cuda.empty_cache()

    def _reply(self, number: int, prompt: int, ids: list[int], finish: str) -> Reply:
        """The token that ends a reply is among vLLM's ids unless it is a special one."""
        said = ids[:-1] if ids and ids[-1] in self._chat.stops else ids
        text = str(self._chat.tokenizer.decode(said, skip_special_tokens=True)).strip()
        return Reply(number, text, tuple(said), "stop" if finish == "stop" else "length", prompt, len(said) + (finish == "stop"))


def require_vllm() -> None:
    """Raise if vLLM or a CUDA device is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "The engine 'vllm' of recover.engine")
    if not torch.cuda.is_available():
        raise ModelError("The engine 'vllm' needs a CUDA device, and there is none here. Set recover.engine to 'auto' or 'transformers'.")
