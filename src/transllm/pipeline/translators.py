"""The translator that a recipe names, opened: what *bridge* translates with."""

from __future__ import annotations

from pathlib import Path

from transllm.data.package import default_cache
from transllm.generation import REPETITION_PENALTY, ConversationEngine, LocalEngine
from transllm.generation.server import ServerEngine
from transllm.model import compute_dtype, default_device, load_merged, place
from transllm.model.saved import adapter_digest
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context
from transllm.recipe.schema import EngineSettings
from transllm.translation import ApertiumTranslator, SelfTranslator, SentenceTranslator, TextTranslator, TranslationCache, Translator
from transllm.translation.deepl import DeepLTranslator
from transllm.translation.google import GoogleTranslator
from transllm.translation.llm import LLMTranslator
from transllm.translation.neural import CTranslate2Translator

_PAIRS = 500


def make_translator(context: Context) -> Translator:
    """The translator that the recipe names: structure kept, with a cache. The model's own translations are kept in the run folder, as its
    weights are; all others where other runs find them.

    Raises:
        MissingExtraError: it is an extra that is not installed.
        ModelError: it cannot be opened: no key, no weights for the pair, no such program.
    """
    settings = context.recipe.bridge.translator
    folder = context.run if settings.name == "self" else _cache(context)
    return TextTranslator(open_sentences(context), cache=TranslationCache(folder / "translations.sqlite") if settings.cache else None,
                          capitals=context.recipe.target.code == "de")


def open_sentences(context: Context) -> SentenceTranslator:
    """The kind of translator that the recipe names, without masks, cache and checks."""
    settings, language = context.recipe.bridge.translator, context.recipe.target
    match settings.name:
        case "apertium":
            return ApertiumTranslator(language)
        case "ctranslate2":
            assert settings.model is not None  # the recipe's types see to it
            return CTranslate2Translator(_local(context, settings.model), language, cache=_cache(context),
                                         to_english=settings.to_english and _local(context, settings.to_english),
                                         compute_type=settings.compute_type, beam_size=settings.beams)
        case "llm":
            return LLMTranslator(_server(context), language, prompt=settings.prompt, max_new_tokens=settings.max_new_tokens,
                                 identity={"model": settings.model, "url": settings.url})
        case "google":
            return GoogleTranslator(language, project=settings.project, url=settings.url)
        case "deepl":
            return DeepLTranslator(language, key_env=settings.key_env or "DEEPL_AUTH_KEY", url=settings.url)
        case "self":
            return _itself(context)


def _server(context: Context) -> ConversationEngine:
    """The server as an engine of conversations; the recipe's own tokenizer counts where it does not."""
    settings = context.recipe.bridge.translator
    asked = EngineSettings(name="server", url=settings.url, model=settings.model, key_env=settings.key_env,
                           concurrency=settings.concurrency)
    return ServerEngine(asked, lambda: context.spans.original, section="bridge.translator", original=False)


def _cache(context: Context) -> Path:
    """The folder that all runs share."""
    return context.cache or default_cache().parent


def _local(context: Context, model: str) -> str:
    """A folder's path from where we stand; a hub id as it is."""
    path = context.recipe.folder / Path(model).expanduser()
    return str(path) if path.is_dir() else model


def _itself(context: Context) -> SelfTranslator:
    device = default_device()
    dtype = compute_dtype(context.recipe.training.precision, device)
    model, _ = load_merged(context.run / "extend", context.run / "bitext", dtype=dtype)
    engine = LocalEngine(place(model, device), pad_id=context.spans.pad_id, batch_size=context.recipe.bridge.batch_size,
                         vocabulary=context.spans.size)
    return SelfTranslator(engine, context.renderer, weights=f"{adapter_digest(context.run / 'bitext')} {dtype}",
                          expansion=2 * _expansion(context), repetition_penalty=REPETITION_PENALTY,
                          beams=context.recipe.bridge.translator.beams)


def _expansion(context: Context) -> float:
    """Tokens of the target side for each token of the English side, over some pairs."""
    pairs = read_part(context.run, "pairs", "development")[:_PAIRS] or read_part(context.run, "pairs", "train")[:_PAIRS]
    english, target = (sum(map(len, encode([pair[side] for pair in pairs]))) for encode, side in (
        (context.spans.encode_english_batch, "english"), (context.spans.encode_target_batch, "target")))
    return target / english if english else 4.0
