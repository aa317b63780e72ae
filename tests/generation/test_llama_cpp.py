"""llama.cpp on a GGUF file of the same weights says what our own engine says; what goes wrong in its process is a sentence in ours."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.generation import Conversation, LlamaCppEngine, Reply, ReplySampling, TransformersEngine, Turn
from transllm.model import ChatTokenizer, LoadedModel
from transllm.model.gguf_file import write_gguf
from transllm.tokenizer import SpanTokenizer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="the extra 'llamacpp' is not installed")

ASKED = [Conversation((Turn("user", text),)) for text in ("Who are you?", "Who is the captain?", "The teacher?", "Where is the library?")]
OPEN = Conversation((Turn("user", "Who are you?"), Turn("assistant", "A captain.")), speaker="user")


def chat_of(loaded: LoadedModel, *, stops: frozenset[int] = frozenset({0})) -> ChatTokenizer:
    return ChatTokenizer(loaded.tokenizer, stops, 256)


def by_number(replies: list[Reply]) -> list[tuple[str, tuple[int, ...], str, int, int]]:
    found = sorted(replies, key=lambda reply: reply.index)
    return [(reply.text, reply.ids, reply.finish, reply.prompt_tokens, reply.tokens) for reply in found]


@pytest.fixture(scope="module")
def file(tiny_chat: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_chat, path)
    return path


@pytest.mark.parametrize("kind", ["tied", "untied", "padded"])
def test_greedy_replies_are_those_of_our_engine(kind: str, make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer,
                                                tmp_path: Path) -> None:
    loaded = LoadedModel(make_chat_model(kind), tiny_spans.original, kind)
    write_gguf(loaded, tmp_path / "model.gguf")
    engine = LlamaCppEngine(tmp_path / "model.gguf", chat_of(loaded), concurrency=2)
    here = list(TransformersEngine(loaded).generate([*ASKED, OPEN], sampling=ReplySampling(12)))
    there = list(engine.generate([*ASKED, OPEN], sampling=ReplySampling(12)))
    engine.close()
    assert by_number(there) == by_number(here)


def test_a_reply_ends_at_an_end_of_turn_and_says_so(tiny_chat: LoadedModel, file: Path) -> None:
    """The end is one of the ids that the greedy reply says without it."""
    engine = LlamaCppEngine(file, chat_of(tiny_chat), concurrency=2)
    (whole,) = engine.generate(ASKED[:1], sampling=ReplySampling(12))
    cut = LlamaCppEngine(file, chat_of(tiny_chat, stops=frozenset({whole.ids[3]})), concurrency=2)
    (reply,) = cut.generate(ASKED[:1], sampling=ReplySampling(12))
    engine.close()
    cut.close()
    end = whole.ids.index(whole.ids[3])
    assert (reply.ids, reply.finish, reply.tokens) == (whole.ids[:end], "stop", end + 1)


def test_samples_differ_from_one_another_and_come_again(tiny_chat: LoadedModel, file: Path) -> None:
    engine = LlamaCppEngine(file, chat_of(tiny_chat), concurrency=2)
    first, second = (by_number(list(engine.generate([ASKED[0]] * 4, sampling=ReplySampling(8, temperature=1.0)))) for _ in range(2))
    engine.close()
    assert first == second
    assert len({ids for _, ids, *_ in first}) == 4


def test_a_long_conversation_gets_room_and_one_that_is_too_long_is_told(tiny_chat: LoadedModel, file: Path) -> None:
    engine = LlamaCppEngine(file, chat_of(tiny_chat), concurrency=2)
    for words, finish in ((60, "length"), (400, "too long")):
        (reply,) = engine.generate([Conversation((Turn("user", "city " * words),))], sampling=ReplySampling(4))
        assert reply.finish == finish, reply
    engine.close()


def test_a_process_that_dies_is_an_error_and_closing_leaves_none(tiny_chat: LoadedModel, file: Path) -> None:
    engine = LlamaCppEngine(file, chat_of(tiny_chat), concurrency=1)
    before = set(psutil.Process().children())
    replies = engine.generate(ASKED, sampling=ReplySampling(8))
    next(iter(replies))
    (host,) = set(psutil.Process().children()) - before
    host.kill()
    with pytest.raises(ModelError, match=r"llama\.cpp ended in the midst"):
        for _ in range(100):
            list(engine.generate(ASKED, sampling=ReplySampling(8)))
    replies.close()  # type: ignore[attr-defined]
    engine.close()
    assert not [child for child in set(psutil.Process().children()) - before if child.is_running()]


def test_a_stop_does_not_wait_for_replies(tiny_chat: LoadedModel, file: Path) -> None:
    engine = LlamaCppEngine(file, chat_of(tiny_chat), concurrency=4)
    replies = engine.generate(ASKED * 50, sampling=ReplySampling(100))
    next(iter(replies))
    started = time.monotonic()
    replies.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5


def test_a_file_that_is_no_model(tiny_chat: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    engine = LlamaCppEngine(tmp_path / "bad.gguf", chat_of(tiny_chat))
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load .*bad\.gguf"):
        list(engine.generate(ASKED[:1], sampling=ReplySampling(2)))


def test_a_family_that_cannot_be_written_is_refused(make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer,
                                                    tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="family 'gemma2' is not written as GGUF here"):
        write_gguf(LoadedModel(make_chat_model("gemma2"), tiny_spans.original, "gemma2"), tmp_path / "model.gguf")


def test_weights_in_bfloat16_stay_as_they_are(make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer,
                                              tmp_path: Path) -> None:
    from gguf import GGUFReader

    model = make_chat_model(dtype=torch.bfloat16)
    write_gguf(LoadedModel(model, tiny_spans.original, "tiny"), tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(str(tmp_path / "model.gguf")).tensors}
    assert "output.weight" not in tensors  # tied
    written = torch.from_numpy(tensors["token_embd.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(written.reshape(-1), model.get_input_embeddings().weight.detach().reshape(-1))
