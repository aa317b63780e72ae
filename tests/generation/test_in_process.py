"""Conversations in the model's own template: the assistant's turn as ``apply_chat_template`` opens it, the user's up to their words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.generation import Conversation, ReplySampling, TransformersEngine, Turn
from transllm.generation.in_process import prompt_ids, prompt_text
from transllm.model import LoadedModel
from transllm.tokenizer import SpanTokenizer

ASKED = Conversation((Turn("user", "Who are you?"),))
LATER = Conversation((Turn("user", "Who are you?"), Turn("assistant", "A captain."), Turn("user", "And my neighbour?")))
OPEN = Conversation((Turn("user", "Who are you?"), Turn("assistant", "A captain.")), speaker="user")


@pytest.fixture(scope="module")
def loaded(make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer) -> LoadedModel:
    return LoadedModel(make_chat_model(), tiny_spans.original, "tiny")


def test_the_template_opens_the_turn_of_who_speaks(loaded: LoadedModel) -> None:
    asked = prompt_text(loaded.tokenizer, ASKED)
    assert asked.endswith("Who are you?<|im_end|>\n<|im_start|>assistant\n")
    assert prompt_text(loaded.tokenizer, OPEN).endswith("A captain.<|im_end|>\n<|im_start|>user\n")
    assert prompt_text(loaded.tokenizer, Conversation(speaker="user")) == "<|begin|><|im_start|>user\n"
    for conversation in (ASKED, OPEN):
        assert loaded.tokenizer.decode(prompt_ids(loaded.tokenizer, conversation)) == prompt_text(loaded.tokenizer, conversation)


def test_replies_are_the_same_alone_and_in_company(loaded: LoadedModel) -> None:
    engine = TransformersEngine(loaded, batch_size=4)
    for sampling in (ReplySampling(12), ReplySampling(12, temperature=1.0, seed=3)):
        together = {reply.index: reply for reply in engine.generate([ASKED, LATER, OPEN], sampling=sampling)}
        assert sorted(together) == [0, 1, 2]
        for number, conversation in enumerate((ASKED, LATER, OPEN)):
            (alone,) = engine.generate([conversation], sampling=sampling)
            assert (alone.text, alone.ids, alone.finish) == (together[number].text, together[number].ids, together[number].finish)
            assert alone.prompt_tokens == len(prompt_ids(loaded.tokenizer, conversation))


def test_equal_conversations_are_sampled_differently(loaded: LoadedModel) -> None:
    sampling = ReplySampling(12, temperature=1.0)
    replies = list(TransformersEngine(loaded).generate([ASKED] * 4, sampling=sampling))
    assert len({reply.ids for reply in replies}) == 4


def test_a_conversation_that_leaves_no_room_is_told_and_the_others_are_answered(loaded: LoadedModel) -> None:
    long = Conversation((Turn("user", "The teacher never saw the city library. " * 200),))
    found = {reply.index: reply for reply in TransformersEngine(loaded).generate([ASKED, long], sampling=ReplySampling(4))}
    assert found[1].finish == "too long" and not found[1].text
    assert found[1].prompt_tokens > 512
    assert found[0].tokens > 0


@pytest.mark.parametrize(("inside", "fault"), [
    ("{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}", "refuses it"),
    ("{% if m.role == 'system' %}{% continue %}{% endif %}", "leaves it out")])
def test_a_template_without_a_place_for_a_system_prompt(loaded: LoadedModel, inside: str, fault: str) -> None:
    kept = loaded.tokenizer.chat_template
    rest = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    loaded.tokenizer.chat_template = "{% for m in messages %}" + inside + rest + "{% endfor %}"
    try:
        engine = TransformersEngine(loaded)
        asked = Conversation((Turn("system", "Be brief."), Turn("user", "Why?")))
        with pytest.raises(ModelError, match=f"{fault}.*system_prompts"):
            list(engine.generate([asked], sampling=ReplySampling(2)))
    finally:
        loaded.tokenizer.chat_template = kept
