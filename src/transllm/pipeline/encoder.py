"""The sentence encoder that a recipe names, opened: what *bridge* scores translations with."""

from __future__ import annotations

from pathlib import Path

from transllm.errors import ModelError
from transllm.model import compute_dtype, default_device, load_merged, place
from transllm.pipeline.stage import Context
from transllm.translation import Encoder, HubEncoder, OwnEncoder, UniversalEncoder


def open_encoder(context: Context) -> Encoder:
    """The sentence encoder that the recipe names.

    Raises:
        ModelError: there is none of this name, or it does not know the language.
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
