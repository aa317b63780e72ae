"""What all sections of a recipe share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


HARMLESS = {"checkpoint_minutes", "log_every", "batch_size", "trackers", "stop_on_spike", "attention", "compile", "url", "key_env",
            "concurrency", "requests_a_minute", "attempts", "timeout_seconds", "cache", "ray"}
"""Settings that change how work is done but not its result; they do not make a finished stage stale, nor a checkpoint another's."""
