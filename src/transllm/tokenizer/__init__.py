"""Learn sub-words, extend a tokenizer, encode spans in the vocabulary of their language, measure fertility.

Three kinds of tokenizer: byte-level BPE, SentencePiece BPE and Unigram (see ``family.py``).
"""

from transllm.tokenizer.bytelevel import piece_bytes
from transllm.tokenizer.extend import extend_tokenizer, id_limit, load_tokenizer, save_tokenizer, sub_tokens
from transllm.tokenizer.fertility import Comparison, Fertility, compare, fertility, segment
from transllm.tokenizer.learn import Learned, learn_merges
from transllm.tokenizer.spans import ENGLISH_MARKER, RESPONSE_MARKER, Markers, SpanTokenizer, marker_texts

__all__ = [
    "ENGLISH_MARKER",
    "RESPONSE_MARKER",
    "Comparison",
    "Fertility",
    "Learned",
    "Markers",
    "SpanTokenizer",
    "compare",
    "extend_tokenizer",
    "fertility",
    "id_limit",
    "learn_merges",
    "load_tokenizer",
    "marker_texts",
    "piece_bytes",
    "save_tokenizer",
    "segment",
    "sub_tokens",
]
