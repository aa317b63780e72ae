"""llama.cpp as an engine of conversations: the extra ``llamacpp`` (xllamacpp), GGUF files, many slots.

It runs in a process of its own. In this one it would take Ctrl-C and SIGTERM for itself, and a failed assertion of it would end the run
without a word. Prompts go to it as token ids, and replies come back as token ids, so templates and texts are this library's: what its own
tokenizer would make of a control token does not matter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transllm.errors import MissingExtraError, ModelError
from transllm.generation.conversation import Conversation, Reply, ReplySampling, reply_seeds
from transllm.generation.in_process import by_room, prompts_of, reply_of
from transllm.generation.side_by_side import side_by_side
from transllm.model import ChatTokenizer

if TYPE_CHECKING:
    import httpx2

_ROOM = 256  # a slot's context is a multiple of it


class LlamaCppEngine:
    """Goes on with conversations with a GGUF file.

    Args:
        file: the GGUF file.
        chat: the tokenizer of the same model.
        concurrency: slots.
        threads: None: as many as the process may use.

    Raises:
        MissingExtraError: xllamacpp is not installed.
    """

    name = "llamacpp"

    def __init__(self, file: Path, chat: ChatTokenizer, *, concurrency: int = 16, threads: int | None = None) -> None:
        require_llama_cpp()
        self._file, self._chat, self._slots = file, chat, concurrency
        self._threads = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
        self._host: _Host | None = None

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``."""
        prompts = prompts_of(self._chat.tokenizer, conversations)
        fitting, too_long = by_room(prompts, self._chat.context)
        yield from too_long
        if not fitting:
            return
        seeds = reply_seeds(conversations, sampling.seed)
        needed = max(len(prompts[number]) for number in fitting) + sampling.max_new_tokens
        host = self._hosted(min(needed, self._chat.context))

        async def reply(client: httpx2.AsyncClient, place: int) -> Reply:
            number = fitting[place]
            return await self._reply(host, client, number, prompts[number], sampling, seeds[number])

        try:
            yield from side_by_side(host.client(), reply, len(fitting), width=self._slots)
        except GeneratorExit:
            self.close()  # nobody waits for what is in its slots
            raise

    def serve(self, *, context: int) -> tuple[str, str]:
        """The address of llama.cpp's own server, which speaks OpenAI's protocol, and its key; each slot has room for so many tokens."""
        host = self._hosted(context)
        return host.address, host.key

    def close(self) -> None:
        """End the process."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def _hosted(self, context: int) -> _Host:
        """A process whose slots have room for so many tokens: the one at work, or a new one."""
        if self._host is None or self._host.context < context:
            self.close()
            self._host = _Host(self._file, slots=self._slots, context=-(-context // _ROOM) * _ROOM, threads=self._threads)
        return self._host

    async def _reply(self, host: _Host, client: httpx2.AsyncClient, number: int, prompt: list[int], sampling: ReplySampling,
                     seed: int) -> Reply:
        request = {"prompt": prompt, "n_predict": min(sampling.max_new_tokens, self._chat.context - len(prompt)),
                   "temperature": sampling.temperature, "top_p": sampling.top_p, "samplers": ["temperature", "top_p"], "seed": seed,
                   "repeat_penalty": 1.0, "return_tokens": True, "cache_prompt": False}
        made = await host.ask(client, request)
        return reply_of(self._chat.tokenizer, number, len(prompt), made["tokens"], self._chat.stops)


class _Host:
    """A process that holds the model.

    Raises:
        ModelError: it cannot load it.
    """

    def __init__(self, file: Path, *, slots: int, context: int, threads: int) -> None:
        self._file, self._slots, self.context, self.key = file, slots, context, secrets.token_hex(16)
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (lives as long as the process)
        # A session of its own: Ctrl-C is for the process that started it.
        self._process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("llama_host.py"))], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        settings = {"model": str(file), "slots": slots, "context": context, "threads": threads, "key": self.key}
        try:
            self._process.stdin.write(json.dumps(settings) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:
            self.close()
            raise
        if not line.startswith("{"):
            said = self.close()
            raise ModelError(f"llama.cpp cannot load '{file}' with {slots} slots of {context} tokens: {said} See that it is a GGUF file "
                             "that this version reads (pip install -U xllamacpp) and that it fits into memory, or lower "
                             "recover.engine.concurrency.")
        self.address = str(json.loads(line)["address"])

    def client(self) -> httpx2.AsyncClient:
        """Connections to it. The environment's proxies are for others."""
        import httpx2

        return httpx2.AsyncClient(base_url=self.address, headers={"Authorization": f"Bearer {self.key}"}, timeout=None, trust_env=False,
                                  limits=httpx2.Limits(max_connections=self._slots))

    async def ask(self, client: httpx2.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
        """What it makes of one request.

        Raises:
            ModelError: it ended, or refused.
        """
        import httpx2

        try:
            answer = await client.post("/completion", json=request)
        except httpx2.TransportError as error:
            code = self._process.poll()
            raise ModelError(f"llama.cpp ended in the midst of its work ({code if code is not None else error!r}): {self._said()} Replies "
                             "that were done are kept; run the same command again, or set recover.engine to 'transformers'.") from error
        made: dict[str, Any] = answer.json()
        if answer.status_code != 200 or "tokens" not in made:
            raise ModelError(f"llama.cpp refused a prompt of {len(request['prompt'])} tokens: {made.get('error', made)}. "
                             "Set recover.engine to 'transformers'.")
        return made

    def close(self) -> str:
        """End it; gives the last thing it said."""
        self._process.kill()
        self._process.communicate()
        said = self._said()
        self._log.close()
        return said

    def _said(self) -> str:
        if self._log.closed:
            return ""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return (lines[-1].rstrip(".") if lines else "it said nothing") + "."


def require_llama_cpp() -> None:
    """Raise if xllamacpp is not installed."""
    for package in ("xllamacpp", "httpx2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "llamacpp", "The engine 'llamacpp' of recover.engine")
