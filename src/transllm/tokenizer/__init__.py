"""Learn sub-words, extend a tokenizer, encode spans in the vocabulary of their language, measure fertility.

Three kinds of tokenizer: byte-level BPE, SentencePiece BPE and Unigram (see ``family.py``).
"""

from transllm.tokenizer.extend import extend_tokenizer, id_limit, keeps_rule, load_tokenizer, save_tokenizer, sub_tokens
from transllm.tokenizer.family import Family, family_of
from transllm.tokenizer.fertility import Comparison, Fertility, compare, fertility, segment
from transllm.tokenizer.learn import Learned, learn_merges
from transllm.tokenizer.proof import LEAST_IDENTICAL, RoundTrips, prove_gguf, prove_kept, prove_round_trips
from transllm.tokenizer.script import Script, script_of
from transllm.tokenizer.spans import ENGLISH_MARKER, RESPONSE_MARKER, Markers, SpanTokenizer, marker_texts
from transllm.tokenizer.throughput import Throughput, throughput

__all__ = [
    "ENGLISH_MARKER",
    "LEAST_IDENTICAL",
    "RESPONSE_MARKER",
    "Comparison",
    "Family",
    "Fertility",
    "Learned",
    "Markers",
    "RoundTrips",
    "Script",
    "SpanTokenizer",
    "Throughput",
    "compare",
    "extend_tokenizer",
    "family_of",
    "fertility",
    "id_limit",
    "keeps_rule",
    "learn_merges",
    "load_tokenizer",
    "marker_texts",
    "prove_gguf",
    "prove_kept",
    "prove_round_trips",
    "save_tokenizer",
    "script_of",
    "segment",
    "sub_tokens",
    "throughput",
]
