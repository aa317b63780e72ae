"""Translators behind one interface."""

from transllm.translation.apertium import ApertiumTranslator
from transllm.translation.itself import SelfTranslator
from transllm.translation.sentences import split_text
from transllm.translation.translator import Translation, Translator

__all__ = ["ApertiumTranslator", "SelfTranslator", "Translation", "Translator", "split_text"]
