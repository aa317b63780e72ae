"""The chat model in this process as an engine of conversations: transformers, in batches that shrink (``local.py``)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from transllm.errors import ModelError
from transllm.generation.conversation import Conversation, Reply, ReplySampling, numbered
from transllm.generation.engine import Sampling
from transllm.generation.local import LocalEngine
from transllm.model import LoadedModel, context_of, end_of_turn_ids

_STAND_IN = "\ue000"  # a private-use character: no template tests for it, none trims it


class TransformersEngine:
    """Goes on with conversations with a chat model in memory.

    Args:
        loaded: the chat model, in its place and precision, with its tokenizer.
        batch_size: conversations in work at once.
    """

    name = "transformers"

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 64) -> None:
        self._tokenizer = loaded.tokenizer
        self._stops = frozenset(end_of_turn_ids(loaded.model, loaded.tokenizer))
        self._context = context_of(loaded.model.config)
        self._engine = LocalEngine(loaded.model, pad_id=loaded.tokenizer.pad_token_id or 0, batch_size=batch_size,
                                   vocabulary=len(loaded.tokenizer))

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """See ``ConversationEngine.generate``.

        Raises:
            ModelError: the chat template has no place for what is said, such as a system prompt.
        """
        prompts = prompts_of(self._tokenizer, conversations)
        fitting, too_long = by_room(prompts, self._context)
        yield from too_long
        how = Sampling(sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p, stop_ids=self._stops,
                       seed=sampling.seed)
        named = numbered(conversations)
        for made in self._engine.generate([prompts[number] for number in fitting], sampling=how,
                                          draws=[named[number].draw for number in fitting]):
            number = fitting[made.index]
            yield reply_of(self._tokenizer, number, len(prompts[number]), made.ids, self._stops)

    def close(self) -> None:
        """Nothing is held but memory, which goes with the object."""


def prompts_of(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[list[int]]:
    """Ids of conversations in the model's template.

    Raises:
        ModelError: the template has no place for what is said, such as a system prompt.
    """
    _check_system(tokenizer, conversations)
    return [prompt_ids(tokenizer, conversation) for conversation in conversations]


def by_room(prompts: Sequence[Sequence[int]], context: int) -> tuple[list[int], list[Reply]]:
    """Numbers of the prompts that leave room for a reply, and what is replied to the others."""
    fitting = [number for number, ids in enumerate(prompts) if len(ids) < context]
    return fitting, [Reply(number, "", (), "too long", len(ids), 0) for number, ids in enumerate(prompts) if len(ids) >= context]


def reply_of(tokenizer: PreTrainedTokenizerBase, number: int, prompt_tokens: int, ids: Sequence[int], stops: Collection[int]) -> Reply:
    """What an engine's tokens say, up to the first that ends a turn."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    said = list(ids[:end])
    text = str(tokenizer.decode(said, skip_special_tokens=True)).strip()
    return Reply(number, text, tuple(said), "length" if end is None else "stop", prompt_tokens, len(said) + (end is not None))


def _check_system(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> None:
    """Some templates refuse a system prompt (Gemma's), some leave it out without a word: try the first there is."""
    told = next((conversation for conversation in conversations if conversation.turns and conversation.turns[0].role == "system"), None)
    if told is None:
        return
    try:
        fault = "leaves it out" if told.turns[0].content.strip() not in prompt_text(tokenizer, told) else ""
    except TemplateError as problem:
        fault = f"refuses it ({problem})"
    if fault:
        raise ModelError(f"A conversation has a system prompt, and the model's chat template {fault}. Take recover.system_prompts out, or "
                         "give the model another template (model.chat_template).")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Ids of a conversation in the model's template, up to where the next speaker's words begin."""
    turns: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
    if conversation.speaker == "assistant":
        return cast(list[int], tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    return list(tokenizer(prompt_text(tokenizer, conversation), add_special_tokens=False)["input_ids"])


def prompt_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """The same as text, with control tokens written out."""
    turns: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
    if conversation.speaker == "assistant":
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    rendered = str(tokenizer.apply_chat_template([*turns, {"role": "user", "content": _STAND_IN}], tokenize=False))
    return rendered[: rendered.index(_STAND_IN)]
