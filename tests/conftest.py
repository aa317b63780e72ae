"""Tiny chat models and their tokenizers, built here in a second: nothing is downloaded, nothing is mocked."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config
from transformers import PreTrainedTokenizerFast as Fast
from transformers.models.gemma2 import Gemma2Config

from transllm import native
from transllm.languages import LANGUAGES
from transllm.model import grow, place
from transllm.model.load import save_folder
from transllm.recipe.schema import Lora, Training
from transllm.tokenizer import SpanTokenizer, extend_tokenizer, learn_merges, marker_texts, sub_tokens

# No deadline: this may run beside a training. Nothing is kept between runs, and a run can be repeated.
settings.register_profile("transllm", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("transllm")

CHATML = ("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
_SPECIAL = ["<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>"]
_ENGLISH = [f"{who} {does} {what}." for who in ("The teacher", "My neighbour", "A user", "The assistant", "Our captain")
            for does in ("describes", "never saw", "wants to visit") for what in ("the city library", "three gardens", "a wooden bridge")]
_SPANISH = [f"{who} {does} {what}." for who in ("La maestra", "Mi vecino", "El capitán", "La compañía")
            for does in ("describía", "nunca visitó", "está buscando")
            for what in ("la biblioteca", "tres jardines", "el corazón del niño")]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Inside, torch has one thread, as in a lane: compiled kernels serve then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, nothing compiled is used, as on a machine without a compiler."""
    monkeypatch.setenv(native.OFF, "1")
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


@functools.cache
def _tokenizer(template: str, bos: str | None, eos: str | None) -> Fast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(_ENGLISH, trainers.BpeTrainer(
        vocab_size=320, special_tokens=_SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return Fast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, unk_token=None, model_max_length=512, chat_template=template)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Fast]:
    """A byte-level BPE of 320 tokens with a chat template that writes one BOS."""
    def make(*, template: str = CHATML, bos: str | None = "<|begin|>", eos: str | None = "<|endoftext|>") -> Fast:
        return _tokenizer(template, bos, eos)

    return make


@pytest.fixture(scope="session")
def make_spans() -> Callable[..., SpanTokenizer]:
    """Such a tokenizer with some Spanish pieces and the markers."""
    @functools.cache
    def make(*, template: str = CHATML, bos: str | None = "<|begin|>", eos: str | None = "<|endoftext|>") -> SpanTokenizer:
        original = _tokenizer(template, bos, eos)
        learned = learn_merges(original, _SPANISH, _ENGLISH, size=30, min_count=2)
        assert len(learned.pieces) == 30
        extended = extend_tokenizer(original, learned, markers=marker_texts(LANGUAGES["es"]), pad=None)
        return SpanTokenizer(original, extended, LANGUAGES["es"])

    return make


@pytest.fixture(scope="session")
def tiny_spans(make_spans: Callable[..., SpanTokenizer]) -> SpanTokenizer:
    return make_spans()


def _config(kind: str, rows: int) -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 256, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}
    if kind in ("tied", "untied"):
        return LlamaConfig(vocab_size=rows, tie_word_embeddings=kind == "tied", **shape)
    if kind == "padded":  # as in Qwen2: the matrix is rounded up, here by more than the extension needs
        return Qwen2Config(vocab_size=(rows // 64 + 2) * 64, tie_word_embeddings=True, **shape)
    if kind == "gemma":
        return GemmaConfig(vocab_size=rows, head_dim=8, **shape)
    if kind == "gemma2":
        return Gemma2Config(vocab_size=rows, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=5.0,
                            final_logit_softcapping=3.0, **shape)
    if kind == "sliding":
        return MistralConfig(vocab_size=rows, sliding_window=6, tie_word_embeddings=False, **shape)
    raise ValueError(kind)


@pytest.fixture(scope="session")
def make_chat_model(tiny_spans: SpanTokenizer) -> Callable[..., PreTrainedModel]:
    """A fresh model with the same random weights at each call, two layers, in evaluation mode."""
    def make(kind: str = "tied", *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(_config(kind, tiny_spans.original_size))
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:  # they start at 0 and 1, which would hide that one of them is lost
                    parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
        return place(model, model.device, dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_extended(make_chat_model: Callable[..., PreTrainedModel], tiny_spans: SpanTokenizer) -> Callable[..., PreTrainedModel]:
    """The same model after the extension."""
    def make(kind: str = "tied", *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        model = make_chat_model(kind, dtype=dtype)
        grow(model, size=tiny_spans.size, sub_tokens=sub_tokens(tiny_spans.original, tiny_spans.extended))
        return model

    return make


@dataclass(frozen=True)
class Folders:
    original: Path
    extended: Path


@pytest.fixture(scope="session")
def make_folders(make_chat_model: Callable[..., PreTrainedModel], make_extended: Callable[..., PreTrainedModel],
                 tiny_spans: SpanTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folders]:
    """Folders of the original and of the extended model, as a run writes them."""
    @functools.cache
    def make(kind: str) -> Folders:
        folder = tmp_path_factory.mktemp(kind)
        save_folder(make_chat_model(kind), folder / "original")
        tiny_spans.original.save_pretrained(folder / "original")
        save_folder(make_extended(kind), folder / "extended")
        tiny_spans.save(folder / "extended")
        return Folders(folder / "original", folder / "extended")

    return make


@pytest.fixture(scope="session")
def make_training() -> Callable[..., Training]:
    """Training settings with a small adapter."""
    def make(*, dropout: float = 0.0, r: int = 4, **settings: Any) -> Training:
        values: dict[str, Any] = {"log_every": 1, "trackers": [], **settings}
        return Training(lora=Lora(r=r, alpha=2 * r, dropout=dropout), **values)

    return make

# How each kind of SentencePiece tokenizer is trained, and who writes its spaces.
_SENTENCEPIECE: dict[str, tuple[dict[str, Any], str]] = {
    "llama2": ({"model_type": "bpe"}, "legacy"),
    "mistral": ({"model_type": "bpe"}, "metaspace"),
    "gemma": ({"model_type": "bpe", "add_dummy_prefix": False}, "gemma"),
    "unigram": ({"model_type": "unigram", "vocab_size": 440}, "legacy"),
    # As in XGLM: what no piece writes is unknown.
    "unigram_unknown": ({"model_type": "unigram", "vocab_size": 190, "byte_fallback": False}, "metaspace"),
}


@functools.cache
def _trained(sentences: tuple[str, ...], **options: Any) -> bytes:
    """A SentencePiece file."""
    written = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 640, "byte_fallback": True, "required_chars": "".join(map(chr, range(33, 127))),
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "control_symbols": ["<|im_start|>", "<|im_end|>"], "max_sentencepiece_length": 12, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=written, **settings | options)
    return written.getvalue()


def _converted(content: bytes, folder: Path, form: str, template: str) -> Fast:
    """The fast form of a SentencePiece file, as transformers' converters make it, with the file beside it.

    Args:
        form: who writes the spaces. "legacy": the normaliser (Llama 2); "metaspace": the pre-tokenizer (later Llama and Mistral
            files); "gemma": the normaliser, without a space before the first word.
    """
    file = sentencepiece.SentencePieceProcessor(model_proto=content)
    pieces = [(file.id_to_piece(number), file.get_score(number)) for number in range(file.get_piece_size())]
    named = [number for number in range(len(pieces)) if file.is_control(number) or file.is_unknown(number)]
    unknown, unigram = file.unk_id(), pieces[-1][1] % 1 != 0
    if unigram:
        backend = Tokenizer(models.Unigram(pieces, unknown, bool(file.is_byte(file.piece_to_id("<0x41>")))))
    else:
        score = {piece: value for number, (piece, value) in enumerate(pieces) if number not in named and not file.is_byte(number)}
        splits = [(-score[piece], -place, piece[:place], piece[place:]) for piece in score for place in range(1, len(piece))
                  if piece[:place] in score and piece[place:] in score]
        backend = Tokenizer(models.BPE({piece: number for number, (piece, _) in enumerate(pieces)},
                                       [(left, right) for *_, left, right in sorted(splits)],
                                       unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=True))
    write = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if form == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if unigram else "first", split=unigram)
    else:
        prefix = [normalizers.Prepend("▁")] if form == "legacy" else []
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    if form == "gemma":
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([*write, *([] if form == "gemma" else [decoders.Strip(" ", 1, 0)])])
    backend.add_special_tokens([AddedToken(pieces[number][0], normalized=False, special=True) for number in named])
    start, end = ("<|im_start|>", "<|im_end|>") if "<|im_end|>" in dict(pieces) else ("<s>", "</s>")
    Fast(tokenizer_object=backend, bos_token=start, eos_token=end, pad_token=end,  # type: ignore[no-untyped-call]
         unk_token=pieces[unknown][0], model_max_length=2048, chat_template=template).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(content)
    tokenizer: Fast = Fast.from_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="session")
def make_sentencepiece() -> Callable[..., Fast]:
    """A SentencePiece tokenizer in both forms in a folder, ``tokenizer.model`` and ``tokenizer.json``: trained on some sentences, or a
    file's bytes."""
    def make(kind: str, source: list[str] | bytes, folder: Path, *, template: str = CHATML, **options: Any) -> Fast:
        settings, form = _SENTENCEPIECE[kind]
        content = source if isinstance(source, bytes) else _trained(tuple(source), **settings | options)
        return _converted(content, folder, form, template)

    return make
