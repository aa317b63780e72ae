"""The translator that a recipe names, opened: what *bridge* translates with."""

from __future__ import annotations

from pathlib import Path

from transllm.errors import ModelError
from transllm.generation import LocalEngine
from transllm.model import compute_dtype, default_device, load_merged, place
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context
from transllm.translation import (
    ApertiumTranslator,
    Encoder,
    HubEncoder,
    OwnEncoder,
    SelfTranslator,
    Translator,
    UniversalEncoder,
)

_PAIRS = 500


def make_translator(context: Context) -> Translator:
    """The translator that the recipe names."""
    if context.recipe.bridge.translator == "apertium":
        return ApertiumTranslator(context.recipe.target)
    device = default_device()
    model, _ = load_merged(context.run / "extend", context.run / "bitext", dtype=compute_dtype(context.recipe.training.precision, device))
    engine = LocalEngine(place(model, device), pad_id=context.spans.pad_id, batch_size=context.recipe.bridge.batch_size,
                         vocabulary=context.spans.size)
    return SelfTranslator(engine, context.renderer, expansion=2 * _expansion(context))


def _expansion(context: Context) -> float:
    """Tokens of the target side for each token of the English side, over some pairs."""
    pairs = read_part(context.run, "pairs", "development")[:_PAIRS] or read_part(context.run, "pairs", "train")[:_PAIRS]
    english, target = (sum(map(len, encode([pair[side] for pair in pairs]))) for encode, side in (
        (context.spans.encode_english_batch, "english"), (context.spans.encode_target_batch, "target")))
    return target / english if english else 4.0


def open_encoder(context: Context) -> Encoder:
    """The sentence encoder that the recipe names.

    Raises:
        ModelError: there is none of this name.
        MissingExtraError: its package is not installed.
    """
    name = context.recipe.bridge.encoder
    if name == "use":
        if context.recipe.target.code not in UniversalEncoder.languages:
            raise ModelError(f"The encoder 'use' of bridge.encoder does not know {context.recipe.target.name}. Take the run's own model: "
                             "'self', or name an encoder that does.")
        return UniversalEncoder()
    if name != "self":
        folder = context.recipe.folder / Path(name).expanduser()
        return HubEncoder(str(folder) if folder.is_dir() else name)
    device = default_device()
    model, _ = load_merged(context.run / "extend", context.run / "bitext", dtype=compute_dtype(context.recipe.training.precision, device))
    return OwnEncoder(place(model, device), context.spans)
