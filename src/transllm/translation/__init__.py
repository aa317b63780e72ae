"""Translators behind one interface."""

from transllm.translation.apertium import ApertiumTranslator
from transllm.translation.cache import TranslationCache
from transllm.translation.itself import SelfTranslator
from transllm.translation.protected import lost_structure
from transllm.translation.sentences import split_text
from transllm.translation.structure import TextTranslator
from transllm.translation.translator import SentenceTranslator, Translation, Translator

__all__ = ["ApertiumTranslator", "SelfTranslator", "SentenceTranslator", "TextTranslator", "Translation", "TranslationCache", "Translator",
           "lost_structure", "split_text"]
