"""The typed recipe: what a run is made of, read, checked and written."""

from __future__ import annotations

from transllm.recipe.check import check_recipe, notices, sources_of
from transllm.recipe.load import dump_recipe, load_recipe, movable, resolved
from transllm.recipe.machine import missing_here
from transllm.recipe.schema import ModelSource, Recipe, Source
from transllm.recipe.write import write_recipe

__all__ = ["ModelSource", "Recipe", "Source", "check_recipe", "dump_recipe", "load_recipe", "missing_here", "movable", "notices",
           "resolved", "sources_of", "write_recipe"]
