"""Translators behind one interface, sentence encoders behind another, and how good a translation is."""

from transllm.translation.apertium import ApertiumTranslator
from transllm.translation.cache import TranslationCache
from transllm.translation.encoders import Encoder, HubEncoder, OwnEncoder, UniversalEncoder
from transllm.translation.itself import SelfTranslator
from transllm.translation.protected import lost_structure
from transllm.translation.quality import combined, round_trip, similarities
from transllm.translation.sentences import split_text
from transllm.translation.structure import TextTranslator
from transllm.translation.translator import Direction, SentenceTranslator, Translation, Translator

__all__ = ["ApertiumTranslator", "Direction", "Encoder", "HubEncoder", "OwnEncoder", "SelfTranslator", "SentenceTranslator",
           "TextTranslator", "Translation", "TranslationCache", "Translator", "UniversalEncoder", "combined", "lost_structure",
           "round_trip", "similarities", "split_text"]
