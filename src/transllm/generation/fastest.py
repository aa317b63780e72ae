"""``recover.engine: auto``: which engine is fastest here, by a short measurement, and the memory of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from transllm.data.prompts import seed_prompts
from transllm.errors import ModelError, TransLLMError
from transllm.files import write_json
from transllm.generation.conversation import Conversation, ConversationEngine, ReplySampling, Turn
from transllm.generation.open_engine import EngineSpec, open_engine, require_engine

_ORDER = ("server", "llamacpp", "transformers", "vllm")  # the likeliest last: the one measured last need not be opened again
_TOKENS = 24
_ENOUGH = 2.0  # seconds that a measurement takes at least, if there are conversations enough
_FIRST = 4


@dataclass(frozen=True)
class Choice:
    """An engine that was taken, and why.

    Attributes:
        name: which.
        tokens_per_second: what was measured of each; empty where the recipe names the engine.
        left_out: by name, why others were not measured.
    """

    name: str
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """In a sentence or two."""
        if not self.tokens_per_second:
            return f"{self.name}: the recipe names it."
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in sorted(self.tokens_per_second.items(), key=lambda entry: -entry[1]))
        out = "".join(f" Without {name}: {reason}" for name, reason in self.left_out.items())
        return f"The engine {self.name} is the fastest here, in tokens a second: {speeds}.{out}"


def engine_for(spec: EngineSpec, remembered: Path, *,
               say: Callable[[str], None] = lambda text: None) -> tuple[ConversationEngine, Choice]:
    """The engine that a recipe asks for, and for ``auto`` the fastest, or what was the fastest when this work was begun.

    Args:
        remembered: where the choice is kept.
        say: told what was chosen and why.

    Raises:
        ModelError, MissingExtraError: it cannot be opened; or none can.
    """
    if spec.settings.name != "auto":
        return open_engine(spec), Choice(spec.settings.name)
    if remembered.exists():
        choice = Choice(**json.loads(remembered.read_text(encoding="utf-8")))
        try:
            return open_engine(_named(spec, choice.name)), choice
        except TransLLMError as error:
            raise ModelError(f"The work in '{remembered.parent}' was begun with the engine '{choice.name}', which does not open now: "
                             f"{error} Mend that, or delete '{remembered}': the rest is then done with another, whose words may "
                             "differ.") from error
    engine, choice = fastest(spec)
    write_json(remembered, asdict(choice))
    say(choice.why)
    return engine, choice


def fastest(spec: EngineSpec) -> tuple[ConversationEngine, Choice]:
    """Measure each engine that works here on some conversations, seconds each, and open the fastest.

    Raises:
        ModelError: none works.
    """
    speeds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    engine: ConversationEngine | None = None
    for name in _ORDER:
        if name == "server" and spec.settings.url is None:
            left_out[name] = "recover.engine gives no url."
            continue
        if engine is not None:
            engine.close()
        engine = None
        try:
            require_engine(_named(spec, name).settings)
            engine = open_engine(_named(spec, name))
            speeds[name] = round(tokens_per_second(engine, most=spec.batch_size), 1)
        except TransLLMError as error:
            left_out[name] = str(error)
    if not speeds:
        raise ModelError(f"No engine works here: {' '.join(f'{name}: {reason}' for name, reason in left_out.items())}")
    best = max(speeds, key=lambda name: speeds[name])
    if engine is None or engine.name != best:
        if engine is not None:
            engine.close()
        engine = open_engine(_named(spec, best))
    return engine, Choice(best, speeds, left_out)


def tokens_per_second(engine: ConversationEngine, *, most: int) -> float:
    """How fast an engine writes: of ever more conversations at once, until they take some seconds. The first ones warm it up."""
    asked = _conversations()
    count = min(_FIRST, most)
    while True:
        chosen = [asked[number % len(asked)] for number in range(count)]
        started = time.monotonic()
        with closing(engine.generate(chosen, sampling=ReplySampling(_TOKENS))) as replies:  # type: ignore[type-var]
            written = sum(reply.tokens for reply in replies)
        seconds = time.monotonic() - started
        if written == 0:
            raise ModelError(f"The engine '{engine.name}' wrote nothing.")
        if seconds >= _ENOUGH or count >= most:
            return written / seconds
        count = min(most, max(2 * count, int(count * _ENOUGH / seconds)))


def _conversations() -> Sequence[Conversation]:
    return [Conversation((Turn("user", prompt),)) for prompt in seed_prompts()]


def _named(spec: EngineSpec, name: str) -> EngineSpec:
    return replace(spec, settings=spec.settings.model_copy(update={"name": name}))
