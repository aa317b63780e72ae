"""vLLM on the same weights says what our own engine says, hands on each reply when it is done, and leaves the process as it was.

Runs where vLLM is installed for the device that is there: a build for processors will do.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transllm.errors import ModelError
from transllm.generation import Conversation, Reply, ReplySampling, TransformersEngine, Turn, VllmEngine
from transllm.model import ChatTokenizer, LoadedModel, save_folder
from transllm.tokenizer import SpanTokenizer

pytestmark = [pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="the extra 'vllm' is not installed"),
              pytest.mark.filterwarnings("ignore")]  # vLLM's imports give dozens

CONTEXT = 128
ASKED = [Conversation((Turn("user", text),)) for text in ("Who are you?", "Who is the captain?", "The teacher?", "Where is the library?")]
OPEN = Conversation((Turn("user", "Who are you?"), Turn("assistant", "A captain.")), speaker="user")


def by_number(replies: list[Reply]) -> list[Reply]:
    return sorted(replies, key=lambda reply: reply.index)


@pytest.fixture(scope="module")
def loaded(tiny_spans: SpanTokenizer) -> LoadedModel:
    """Heads of 32, vLLM's smallest; some rows that no token has."""
    config = LlamaConfig(vocab_size=tiny_spans.original_size + 16, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data[tiny_spans.original_size:] *= 50  # were they not left out, they would be said
    return LoadedModel(model, tiny_spans.original, "tiny")


@pytest.fixture(scope="module")
def make_engine(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., VllmEngine]]:
    folder = tmp_path_factory.mktemp("vllm")
    save_folder(loaded.model, folder)
    loaded.tokenizer.save_pretrained(folder)
    opened: list[VllmEngine] = []

    def make(stops: frozenset[int] = frozenset({0})) -> VllmEngine:
        while opened:
            opened.pop().close()
        opened.append(VllmEngine(folder, ChatTokenizer(loaded.tokenizer, stops, CONTEXT), dtype=torch.float32))
        return opened[0]

    yield make
    while opened:
        opened.pop().close()


def test_greedy_replies_are_those_of_our_engine(loaded: LoadedModel, make_engine: Callable[..., VllmEngine]) -> None:
    here = TransformersEngine(loaded).generate([*ASKED, OPEN], sampling=ReplySampling(12))
    there = make_engine().generate([*ASKED, OPEN], sampling=ReplySampling(12))
    assert by_number(list(there)) == by_number(list(here))


def test_samples_differ_from_one_another_and_come_again(make_engine: Callable[..., VllmEngine]) -> None:
    engine = make_engine()
    first, second = (by_number(list(engine.generate([ASKED[0]] * 4, sampling=ReplySampling(8, temperature=1.0)))) for _ in range(2))
    assert first == second
    assert len({reply.ids for reply in first}) == 4


def test_a_reply_ends_at_an_end_of_turn_and_says_so(make_engine: Callable[..., VllmEngine]) -> None:
    (whole,) = make_engine().generate(ASKED[:1], sampling=ReplySampling(12))
    (reply,) = make_engine(frozenset({whole.ids[3]})).generate(ASKED[:1], sampling=ReplySampling(12))
    end = whole.ids.index(whole.ids[3])
    assert (reply.ids, reply.finish, reply.tokens) == (whole.ids[:end], "stop", end + 1)


def test_what_is_too_long_is_told_and_what_has_little_room_is_cut(make_engine: Callable[..., VllmEngine]) -> None:
    few, many = (Conversation((Turn("user", "city " * words),)) for words in (30, 400))
    first, second = by_number(list(make_engine().generate([few, many], sampling=ReplySampling(1000))))
    assert (first.finish, first.prompt_tokens + first.tokens) == ("length", CONTEXT)
    assert (second.finish, second.text) == ("too long", "")


def test_what_nobody_waits_for_is_dropped(make_engine: Callable[..., VllmEngine]) -> None:
    """The first reply comes before the others are done, and a second call is not given what the first had asked for."""
    engine = make_engine()
    replies = engine.generate([Conversation((Turn("user", "a" * many),)) for many in range(1, 9)], sampling=ReplySampling(60))
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert [reply.index for reply in engine.generate(ASKED[:1], sampling=ReplySampling(2))] == [0]


def test_the_process_is_left_as_it_was(make_engine: Callable[..., VllmEngine]) -> None:
    """Training comes after *recover*, in this process."""
    before = (torch.get_num_threads(), os.sched_getaffinity(0), torch.get_default_dtype())
    engine = make_engine()
    list(engine.generate(ASKED, sampling=ReplySampling(2)))
    engine.close()
    assert (torch.get_num_threads(), os.sched_getaffinity(0), torch.get_default_dtype()) == before
    assert not torch.distributed.is_initialized()
    engine.close()  # a second time is no error


def test_what_cannot_be_loaded_is_a_sentence(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM cannot load .*Set recover\.engine"):
        VllmEngine(tmp_path, ChatTokenizer(loaded.tokenizer, frozenset({0}), CONTEXT), dtype=torch.float32)


def test_it_does_not_start_among_processes_that_train_together(loaded: LoadedModel, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ModelError, match=r"several processes.*--until recover"):
        VllmEngine(tmp_path, ChatTokenizer(loaded.tokenizer, frozenset({0}), CONTEXT), dtype=torch.float32)
