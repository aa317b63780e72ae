"""Throw-away tokenizers of every family, trained in a second on sentences made here, and text in three languages."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast as Fast

from transllm.languages import LANGUAGES
from transllm.tokenizer import Learned, SpanTokenizer, extend_tokenizer, learn_merges, marker_texts

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

_ENGLISH = {
    "who": ["the teacher", "my neighbour", "an old farmer", "the young doctor", "our captain", "the president", "a child",
             "the community", "every student", "the quiet engineer", "her brother", "the nation", "their mother", "the company",
             "nobody"],
    "does": ["wanted to visit", "can describe", "has never seen", "is writing about", "explained", "remembers", "carefully introduced",
             "should consider", "was cleaning", "painted", "organised", "will celebrate", "invented", "compares", "translated"],
    "what": ["the city library", "a wooden bridge", "three large gardens", "the national museum", "a decision", "many problems",
             "the information", "a simple solution", "hamburgers and soup", "the opposite direction", "an important message",
             "the history of music", "windows and doors", "a mountain village", "the new university"],
    "when": ["in the morning.", "last winter.", "because it rained.", "without any help.", "in 1987.", "for the family.",
             "with great care!", "after the celebration?", "before dinner.", "and then slept.", "during the summer of 2004.",
             "near a river."],
}
_SPANISH = {
    "who": ["la maestra", "mi vecino", "el viejo campesino", "los niños", "nuestro capitán", "la comunidad", "cada estudiante",
             "el presidente", "una mujer", "la nación", "su hermano", "el médico", "la compañía", "nadie"],
    "does": ["quería visitar", "describe", "nunca ha visto", "está escribiendo sobre", "explicó", "recuerda", "presentó",
             "debería considerar", "limpiaba", "pintó", "organizó", "celebrará", "inventó", "tradujo"],
    "what": ["la biblioteca de la ciudad", "un puente de madera", "tres jardines grandes", "el museo nacional", "una decisión",
             "la información", "muchos problemas", "una solución sencilla", "la dirección contraria", "la historia de la música",
             "el corazón del pueblo", "las ventanas y las puertas", "la nueva universidad"],
    "when": ["por la mañana.", "el invierno pasado.", "porque llovía.", "sin ninguna ayuda.", "en 1987.", "para la familia.",
             "con mucho cuidado.", "después de la celebración.", "antes de la cena.", "durante el verano de 2004.", "¿verdad?",
             "¡qué ilusión!"],
}
_THAI = {
    "who": ["ครู", "เพื่อนบ้านของฉัน", "ชาวนา", "นักเรียนทุกคน", "ประธานาธิบดี", "ผู้หญิงคนหนึ่ง", "หมอหนุ่ม", "ชุมชน"],
    "does": ["อยากไปเยี่ยม", "อธิบาย", "ไม่เคยเห็น", "กำลังเขียนเกี่ยวกับ", "จำ", "ควรพิจารณา", "ทำความสะอาด", "แปล"],
    "what": ["ห้องสมุดของเมือง", "สะพานไม้", "สวนขนาดใหญ่", "พิพิธภัณฑ์แห่งชาติ", "ข้อมูล", "ปัญหามากมาย", "ประวัติศาสตร์ดนตรี", "Windows"],
    "when": ["ในตอนเช้า", "เมื่อฤดูหนาวที่แล้ว", "เพราะฝนตก", "ในปี ๒๕๓๐", "เพื่อครอบครัว", "ก่อนอาหารเย็น", "ใน Facebook"],
}


def _sentences(parts: dict[str, list[str]], count: int, seed: int, joint: str = " ") -> list[str]:
    choice = random.Random(seed).choice
    made = [joint.join(choice(options) for options in parts.values()) for _ in range(count)]
    return [sentence[0].upper() + sentence[1:] for sentence in made]


@dataclass(frozen=True)
class Texts:
    english: list[str]
    spanish: list[str]
    thai: list[str]


@pytest.fixture(scope="session")
def texts() -> Texts:
    return Texts(_sentences(_ENGLISH, 500, 1), _sentences(_SPANISH, 500, 2), _sentences(_THAI, 500, 3, ""))


def _wrap(backend: Tokenizer, **options: Any) -> Fast:
    settings: dict[str, Any] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": None,
                                "model_max_length": 2048, "chat_template": TEMPLATE}
    return Fast(tokenizer_object=backend, **settings | options)  # type: ignore[no-untyped-call]


def _gpt2(texts: Texts) -> Fast:
    """Special tokens first, in the model's vocabulary, as in SmolLM."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.train_from_iterator(texts.english, trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return _wrap(backend)


def _llama3(texts: Texts) -> Fast:
    """As in Llama 3: special tokens only added, after the model's vocabulary; ``ignore_merges`` with words no merge makes."""
    backend = _byte_level(texts, LLAMA_3, ignore_merges=True)
    parsed = json.loads(backend.to_str())
    parts = {part for merge in parsed["model"]["merges"] for part in merge}
    leaves = [merge for merge in parsed["model"]["merges"] if "".join(merge) not in parts]
    parsed["model"]["merges"] = [merge for merge in parsed["model"]["merges"] if merge not in leaves[:15]]
    backend = Tokenizer.from_str(json.dumps(parsed))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens(["<think>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 420)])
    return _wrap(backend)


def _qwen(texts: Texts) -> Fast:
    """As in Qwen: canonical composition before anything else, every digit on its own."""
    backend = _byte_level(texts, LLAMA_3.replace("{1,3}", ""))
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _wrap(backend)


def _byte_level(texts: Texts, pattern: str, **options: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(texts.english, trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return backend


BYTE_LEVEL = ["gpt2", "llama3", "qwen"]
SENTENCEPIECE_BPE = ["llama2", "mistral", "gemma"]
UNIGRAM = ["unigram", "unigram_unknown"]
KINDS = BYTE_LEVEL + SENTENCEPIECE_BPE + UNIGRAM


@pytest.fixture(scope="session")
def make_original(texts: Texts, make_sentencepiece: Callable[..., Fast], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Fast]:
    """A tokenizer trained on English, of one of the kinds."""
    @functools.cache
    def make(kind: str) -> Fast:
        if kind in BYTE_LEVEL:
            return {"gpt2": _gpt2, "llama3": _llama3, "qwen": _qwen}[kind](texts)
        return make_sentencepiece(kind, texts.english, tmp_path_factory.mktemp(kind), template=TEMPLATE)

    return make


@pytest.fixture(scope="session")
def gpt2_like(make_original: Callable[[str], Fast]) -> Fast:
    return make_original("gpt2")


@pytest.fixture(scope="session")
def llama_like(make_original: Callable[[str], Fast]) -> Fast:
    return make_original("llama3")


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def original(kind: str, make_original: Callable[[str], Fast]) -> Fast:
    return make_original(kind)


@pytest.fixture(scope="session")
def learned(original: Fast, texts: Texts) -> Learned:
    return learn_merges(original, texts.spanish, texts.english, size=150, min_count=3)


@pytest.fixture(scope="session")
def extended(original: Fast, learned: Learned) -> Fast:
    return extend_tokenizer(original, learned, markers=marker_texts(LANGUAGES["es"]), pad=None)


@pytest.fixture(scope="session")
def spans(original: Fast, extended: Fast) -> SpanTokenizer:
    return SpanTokenizer(original, extended, LANGUAGES["es"])


@pytest.fixture(scope="session")
def random_texts(texts: Texts) -> list[str]:
    """Texts that nobody would write: characters of all planes, control signs, cut and glued sentences, special tokens."""
    draw = random.Random(4)
    alphabet: list[Callable[[], str]] = [
        lambda: chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])),
        lambda: chr(draw.randrange(128)), lambda: draw.choice(texts.spanish)[:draw.randrange(30)],
        lambda: draw.choice(texts.thai)[draw.randrange(10):], lambda: draw.choice(["<EN>", "<ES>", "<|im_end|>", "<|pad|>", "  ", "\n"])]
    return ["".join(draw.choice(alphabet)() for _ in range(draw.randrange(1, 12))) for _ in range(400)]
