"""vLLM in this process as an engine of conversations: the extra ``vllm`` for CUDA, or a build of it for processors.

Prompts go to it as token ids and replies come back as token ids, so templates and texts are this library's. vLLM's own loop is stepped
here, so that each reply is handed on when it is done, not when all are.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

from transllm.errors import MissingExtraError, ModelError, first_line
from transllm.generation.conversation import Conversation, Reply, ReplySampling, reply_seeds
from transllm.generation.in_process import by_room, prompts_of, reply_of
from transllm.model import ChatTokenizer

_CPU_CACHE = 4 << 30  # bytes for keys and values on a processor, at most; vLLM would take nine tenths of the machine
_WAITING = 1024  # requests in its hands at once: enough to keep any batch full


class VllmEngine:
    """Goes on with conversations with vLLM, on all CUDA devices of this process, or on its processors.

    Args:
        model: a Hugging Face folder, or a hub id.
        chat: the tokenizer of the same model.
        dtype: to compute in.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: there is no device for it, it cannot load the model, or this is one of several processes that train together.
    """

    name = "vllm"

    def __init__(self, model: Path | str, chat: ChatTokenizer, *, dtype: torch.dtype) -> None:
        require_vllm()
        from vllm import LLM

        self._chat = chat
        try:
            # Loading draws bars of its own; our progress speaks.
            llm: Any = LLM(str(model), tokenizer=str(model), dtype=str(dtype).removeprefix("torch."), seed=0, use_tqdm_on_load=False,
                           **_for_device())
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(f"vLLM cannot load '{model}': {first_line(error)}. Set recover.engine to 'transformers'.") from error
        self._engine: Any = llm.llm_engine
        self._context = min(chat.context, int(self._engine.model_config.max_model_len))
        padded = self._engine.model_config.get_vocab_size() > len(chat.tokenizer)
        self._allowed = list(range(len(chat.tokenizer))) if padded else None

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``."""
        prompts = prompts_of(self._chat.tokenizer, conversations)
        seeds = reply_seeds(conversations, sampling.seed)
        fitting, too_long = by_room(prompts, self._context)
        yield from too_long
        waiting, asked = iter(fitting), set[str]()
        try:
            while True:
                for number in islice(waiting, _WAITING - len(asked)):
                    self._ask(number, prompts[number], sampling, seeds[number])
                    asked.add(str(number))
                if not asked:
                    return
                for done in self._engine.step():
                    if done.finished:
                        asked.remove(done.request_id)
                        number, ids = int(done.request_id), done.outputs[0].token_ids
                        yield reply_of(self._chat.tokenizer, number, len(prompts[number]), ids, self._chat.stops)
        finally:
            if asked and self._engine is not None:
                self._engine.abort_request(list(asked))  # nobody waits for these

    def close(self) -> None:
        """Give back the device's memory, and the group of one process that vLLM made, so that training can make its own."""
        if self._engine is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine = None
        gc.collect()  # its parts hold one another
        cleanup_dist_env_and_memory()

    def _ask(self, number: int, prompt: list[int], sampling: ReplySampling, seed: int) -> None:
        """Hand a prompt to vLLM; its reply will come by the number as a name."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = SamplingParams(max_tokens=min(sampling.max_new_tokens, self._context - len(prompt)), temperature=sampling.temperature,
                             top_p=sampling.top_p, seed=seed if sampling.temperature else None, stop_token_ids=sorted(self._chat.stops),
                             allowed_token_ids=self._allowed, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        self._engine.add_request(str(number), {"prompt_token_ids": prompt}, how)


def require_vllm() -> None:
    """Raise if vLLM is missing, or cannot start in this process, or a device of the kind that it was built for is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "The engine 'vllm' of recover.engine")
    if torch.distributed.is_initialized():  # it would make a process group of its own
        raise ModelError("vLLM cannot start in a run of several processes. Run 'transllm run RECIPE --until recover' without the "
                         "launcher first, then the whole with it.")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # some hundred lines for each start, otherwise
    # On one device its loop runs in this process, which then needs no guard of '__main__', and whose end leaves nothing behind.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        from vllm import LLM  # noqa: F401  (vllm's names are imported when they are asked for)
        from vllm.platforms import current_platform
    except (ImportError, RuntimeError, OSError) as error:
        raise ModelError(f"vLLM is installed and cannot be imported: {first_line(error)}. Its version and torch's must fit each "
                         "other; or set recover.engine to 'auto' or 'transformers'.") from error
    if not torch.cuda.is_available() and not current_platform.is_cpu():
        raise ModelError("The engine 'vllm' needs a CUDA device, or a build of vLLM for processors, and neither is here. Set "
                         "recover.engine to 'auto' or 'transformers'.")


def _for_device() -> dict[str, Any]:
    """What vLLM is told of the machine. On a processor it would compile for two minutes at each start, and gain nothing by it."""
    if torch.cuda.is_available():
        return {"tensor_parallel_size": torch.cuda.device_count()}
    return {"enforce_eager": True, "kv_cache_memory_bytes": min(_CPU_CACHE, psutil.virtual_memory().available // 4)}
