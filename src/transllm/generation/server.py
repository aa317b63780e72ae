"""Any server that speaks OpenAI's protocol as an engine of conversations: vLLM, llama.cpp, SGLang, a cloud.

Requests and their retries go through the official client; when to try again is decided here, since the client knows neither of a limit
of requests a minute nor of replies that are no replies, and gives up where a server asks for more than two minutes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from transllm.errors import MissingExtraError, ModelError
from transllm.generation.conversation import Conversation, Finish, Reply, ReplySampling, reply_seeds
from transllm.generation.in_process import prompt_ids, prompt_text
from transllm.generation.side_by_side import side_by_side
from transllm.recipe.schema import EngineSettings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)

SECTION = "recover.engine"
_LONGEST_PAUSE = 60.0
_LONGEST_ASKED = 900.0  # what a server may ask for; more is an error that says so
_TOO_LONG = ("context_length_exceeded", "exceed_context_size", "maximum context length", "context length", "context size", "context window",
             "prompt is too long", "input is too long")
_START_TOKENS = 1  # servers differ in whether they count the token that starts a text
_FOR_GOOD = ("insufficient_quota", "billing_hard_limit_reached")


class _Again(Exception):
    """A request failed in a way that may pass; the message ends a sentence that begins with the server."""

    def __init__(self, message: str, asked: float | None = None) -> None:
        self.asked = asked
        super().__init__(message)


class ServerEngine:
    """Goes on with conversations by asking a server.

    Args:
        settings: the recipe's ``recover.engine``.
        tokenizer: gives the recipe's model's tokenizer; asked for where the user is to speak, whose turn is completed from rendered text,
            and where the server counts no tokens.
        pause: seconds before the second attempt; doubled for each further one.
        section: where its settings stand in the recipe, for messages.
        original: whether it serves the recipe's own chat model, so that its prompts should be as long as the template's.

    Raises:
        MissingExtraError: the client is not installed.
        ModelError: the key is not in the environment.
    """

    name = "server"

    def __init__(self, settings: EngineSettings, tokenizer: Callable[[], PreTrainedTokenizerBase], *, pause: float = 1.0,
                 section: str = SECTION, original: bool = True) -> None:
        require_client(section)
        assert settings.url is not None and settings.model is not None  # the recipe's types see to it
        self._settings, self._model, self._url, self._tokenizer = settings, settings.model, settings.url, tokenizer
        self._key, self._section = key_of(settings, section), section
        self._pause = pause
        self._compared = not original
        self._pace = _Pace(60 / settings.requests_a_minute if settings.requests_a_minute else 0.0)

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``. Replies come as they are done; those that were done come before an error. Whether a
        second call gets the same samples is the server's to keep: several round otherwise in another batch."""
        from openai import AsyncOpenAI

        seeds = reply_seeds(conversations, sampling.seed)
        client = AsyncOpenAI(base_url=self._url, api_key=self._key, max_retries=0, timeout=self._settings.timeout_seconds)
        yield from side_by_side(client, lambda opened, number: self._reply(opened, number, conversations[number], sampling, seeds[number]),
                                len(conversations), width=self._settings.concurrency)

    def close(self) -> None:
        """Connections end with each call."""

    async def _reply(self, client: AsyncOpenAI, number: int, conversation: Conversation, sampling: ReplySampling, seed: int) -> Reply:
        """One reply, after as many attempts as it takes and the settings allow."""
        for attempt in range(1, self._settings.attempts + 1):
            await self._pace.turn()
            try:
                return await self._attempt(client, number, conversation, sampling, seed)
            except _Again as failure:
                if attempt == self._settings.attempts:
                    raise ModelError(f"The server at {self._url} {failure} So it was {attempt} times in a row for one request. Replies "
                                     "that were done are kept. See that it runs and is well, and run the same command again.") from failure
                if failure.asked is not None:
                    self._pace.hold(failure.asked)
                await asyncio.sleep(failure.asked if failure.asked is not None else
                                    min(self._pause * 2 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.75, 1.25))
        raise AssertionError("there is at least one attempt")

    async def _attempt(self, client: AsyncOpenAI, number: int, conversation: Conversation, sampling: ReplySampling, seed: int) -> Reply:
        """One request.

        Raises:
            _Again: it failed in a way that may pass.
            ModelError: it failed for good.
        """
        import openai

        request: dict[str, Any] = {"model": self._model, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature,
                                   "top_p": sampling.top_p, "extra_body": self._settings.body or None}
        if sampling.temperature:
            request["seed"] = seed
        try:
            if conversation.speaker == "assistant":
                messages: Any = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
                answer = await client.chat.completions.with_raw_response.create(messages=messages, **request)
            else:
                answer = await client.completions.with_raw_response.create(prompt=self._rendered(conversation), **request)
        except openai.APITimeoutError as error:
            raise _Again(f"did not answer within {self._settings.timeout_seconds:g} seconds.") from error
        except openai.APIConnectionError as error:
            raise _Again(f"cannot be reached ({error.__cause__ or error}).") from error
        except openai.APIStatusError as error:
            said = _said(error.response.text)
            if error.status_code in (400, 413, 422) and any(sign in said.lower() for sign in _TOO_LONG):
                return Reply(number, "", (), "too long", self._count(prompt_text(self._tokenizer(), conversation)), 0)
            raise self._status(error.status_code, said, error.response.headers, conversation) from error
        text, finish, used = _read(answer.http_response.text)
        self._compare(conversation, used.get("prompt_tokens"))
        written = used.get("completion_tokens")
        asked = used.get("prompt_tokens")
        return Reply(number, text.strip(), (), finish, asked if isinstance(asked, int) else self._count(
            prompt_text(self._tokenizer(), conversation)), written if isinstance(written, int) else self._count(text) + (finish == "stop"))

    def _compare(self, conversation: Conversation, counted: Any) -> None:
        """Tell, once, if the server reads another prompt than the recipe's model would: it has another template, or another model."""
        if self._compared or not isinstance(counted, int):
            return
        self._compared = True
        own = len(prompt_ids(self._tokenizer(), conversation))
        if abs(own - counted) > _START_TOKENS:
            log.warning("The server at %s counts %d tokens in a conversation that has %d in the template of the recipe's model. It writes "
                        "another template (a system prompt more or less), or serves another model. See that its answers are the "
                        "original's.", self._url, counted, own)

    def _status(self, status: int, said: str, headers: Any, conversation: Conversation) -> Exception:
        """What a status other than 200 means."""
        where = f"The server at {self._url}"
        if status in (401, 403):
            mend = (f"Set the variable '{self._settings.key_env}' to a key that it takes." if self._settings.key_env else
                    f"It was given none: name the environment variable that holds one in {self._section}.key_env.")
            return ModelError(f"{where} refused the key ({status}: {said}) {mend}")
        if status == 404 and "model" in said.lower():
            return ModelError(f"{where} does not know the model '{self._model}' ({said}) Set {self._section}.model to a name that it "
                              f"serves (most list them at {self._url.rstrip('/')}/models).")
        if status in (404, 405, 501) and conversation.speaker == "user":
            return ModelError(f"{where} cannot complete text ({status}), so it cannot speak as the user. Take 'self' out of "
                              "recover.prompts and name a source of prompts, or set recover.engine to one that runs the model here, "
                              "such as 'transformers'.")
        if status in (404, 405, 501):
            return ModelError(f"There is no chat at {self._url} ({status}: {said}) Set {self._section}.url to the server's address with "
                              "its '/v1', if it has one.")
        if status in (408, 409, 425, 429) or status >= 500:
            asked = _asked(headers)
            if any(sign in said for sign in _FOR_GOOD):
                return ModelError(f"{where} says that the account has no credit left ({said}) Replies that were done are kept.")
            if asked is not None and asked > _LONGEST_ASKED:
                return ModelError(f"{where} asks to wait for {asked / 60:.0f} minutes ({status}: {said}) Run the same command again then: "
                                  f"replies that were done are kept. A lower {self._section}.requests_a_minute may help.")
            return _Again(f"answered with {status}: {said}", asked)
        return ModelError(f"{where} does not take the request ({status}: {said}) See {self._section}: url, model and body.")

    def _rendered(self, conversation: Conversation) -> str:
        """The template's text up to where the user's words begin, without the start token if the server puts one there itself."""
        tokenizer = self._tokenizer()
        text, start = prompt_text(tokenizer, conversation), str(tokenizer.bos_token or "")
        opens: list[int] = list(tokenizer("")["input_ids"])
        return text.removeprefix(start) if start and opens[:1] == [tokenizer.bos_token_id] else text

    def _count(self, text: str) -> int:
        return len(self._tokenizer()(text, add_special_tokens=False)["input_ids"])


class _Pace:
    """When the next request may begin.

    Args:
        gap: seconds between two.
    """

    def __init__(self, gap: float) -> None:
        self._gap, self._next = gap, 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now)

    def hold(self, seconds: float) -> None:
        """The server asked for so long a pause: nobody begins before."""
        self._next = max(self._next, time.monotonic() + seconds)


def require_client(section: str = SECTION) -> None:
    """Raise if the client is not installed."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("openai", "server", f"The server of {section}") from error


def key_of(settings: EngineSettings, section: str = SECTION) -> str:
    """The key, from the environment. Where the recipe names none a dash: the client would else send what OPENAI_API_KEY holds.

    Raises:
        ModelError: the variable that the recipe names is not set.
    """
    if settings.key_env is None:
        return "-"
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise ModelError(f"The environment variable '{settings.key_env}', which {section}.key_env names, is not set. "
                         f"Set it to the key for {settings.url}: export {settings.key_env}=...")
    return key


def _read(text: str) -> tuple[str, Finish, dict[str, Any]]:
    """Text, finish and usage of a reply of either endpoint.

    Raises:
        _Again: it is none. Proxies and servers that are starting answer so, too.
    """
    if not text.strip():
        raise _Again("answered with an empty body.")
    try:
        value = json.loads(text)
    except ValueError:
        raise _Again(f"answered with what is no JSON: {_short(text)}") from None
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise _Again(f"gave no choices: {_short(text)}")
    message = choice.get("message")
    said = (message.get("content") or message.get("refusal")) if isinstance(message, dict) else choice.get("text")
    whole = choice.get("finish_reason") == "stop"
    if said is None and choice.get("finish_reason") in ("stop", "length"):
        said = ""  # it ended at once, or thought until it was cut
    if not isinstance(said, str):
        raise _Again(f"gave a choice without text: {_short(text)}")
    used = value.get("usage")
    return said, "stop" if whole else "length", used if isinstance(used, dict) else {}


def _said(text: str) -> str:
    """The message of an error's body, or its beginning."""
    try:
        value = json.loads(text)
    except ValueError:
        return _short(text)
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        parts = [str(error[key]) for key in ("message", "detail", "code", "type") if isinstance(error.get(key), str) and error[key]]
        return _short(", ".join(parts) or text)
    return _short(str(error))


def _short(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= 200 else line[:197] + "..."
    return (line or "nothing") + ("" if line.endswith(".") else ".")


def _asked(headers: Any) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or as a date."""
    asked = headers.get("retry-after")
    if asked is None:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            return None
