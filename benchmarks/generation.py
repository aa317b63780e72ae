"""How many answers a second each engine that runs here gives, beside the one-at-a-time ``model.generate`` of the authors' evaluation code.

    python benchmarks/generation.py [--prompts 256] [--tokens 40] [--naive 6] [--rounds 2] [--engines NAME ...]

The demo's model and settings: SmolLM2-135M from its wheel, greedy, 40 new tokens. The prompts are the library's own 203, and "Say in other
words" with lines of everyday_en-es.tsv. They are dealt into rounds; in each, naive and the engines take turns on the same machine, naive on
some of the round's prompts. ``server`` is the engine for servers, asking llama.cpp's own over HTTP. What is not installed is left out.

First ``auto`` chooses (recover.engine: auto), as a run would; then it is seen how good its choice was. Prints a line for each turn, and
last one line of JSON: ``vs_naive`` (answers a second of what auto chose over naive's) and ``auto_vs_best`` (its choice's over the fastest
engine's), both as medians over rounds with their spread; ``answers_per_second`` and ``tokens_per_second`` of each, prompts and templates
included in the time; and ``same_text``: of how many prompts an engine's greedy text is the transformers engine's, and after how many tokens
the others part (median).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from transllm import load_recipe
from transllm.data.prompts import seed_prompts
from transllm.errors import TransLLMError
from transllm.generation import (
    Conversation,
    ConversationEngine,
    EngineSpec,
    LlamaCppEngine,
    Reply,
    ReplySampling,
    Turn,
    fastest,
    open_engine,
    require_engine,
)
from transllm.model import LoadedModel, compute_dtype, default_device, load_chat_model, place
from transllm.recipe.schema import EngineSettings

HERE = Path(__file__).parent
NAMES = ("transformers", "llamacpp", "vllm", "server")
Answered = list[Reply]


@dataclass
class Timed:
    """One turn: replies by number, and seconds."""

    replies: Answered
    seconds: float

    @property
    def answers_per_second(self) -> float:
        return len(self.replies) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return sum(reply.tokens for reply in self.replies) / self.seconds


def prompts(count: int) -> list[Conversation]:
    """Conversations of one user's turn."""
    lines = (HERE / "everyday_en-es.tsv").read_text(encoding="utf-8").splitlines()
    texts = [*seed_prompts(), *(f"Say in other words: {line.split(chr(9))[0]}" for line in lines)]
    if count > len(texts):
        raise SystemExit(f"There are only {len(texts)} prompts.")
    return [Conversation((Turn("user", text),)) for text in texts[:count]]


class Naive:
    """One prompt at a time through ``model.generate``, as it comes."""

    name = "naive"

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @torch.inference_mode()
    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        model: Any = self._loaded.model
        tokenizer = self._loaded.tokenizer
        for number, conversation in enumerate(conversations):
            turns = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
            prompt: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            given = prompt.to(model.device)
            length = given["input_ids"].shape[1]
            ids = model.generate(**given, max_new_tokens=sampling.max_new_tokens, do_sample=False)[0, length:].tolist()
            text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
            yield Reply(number, text, tuple(ids), "length", length, len(ids))

    def close(self) -> None:
        """Nothing is held."""


def timed(engine: ConversationEngine, conversations: Sequence[Conversation], sampling: ReplySampling) -> Timed:
    """Answer, with the clock on."""
    started = time.perf_counter()
    replies = sorted(engine.generate(conversations, sampling=sampling), key=lambda reply: reply.index)
    return Timed(replies, time.perf_counter() - started)


@contextmanager
def opened(spec: EngineSpec, asked: Sequence[str]) -> Iterator[dict[str, ConversationEngine]]:
    """The engines that work here, by name."""
    engines: dict[str, ConversationEngine] = {}
    try:
        for name in asked:
            if name == "server":
                continue
            try:
                settings = spec.settings.model_copy(update={"name": name})
                require_engine(settings)
                engines[name] = open_engine(replace(spec, settings=settings))
            except TransLLMError as error:
                print(f"without {name}: {error}", flush=True)
        behind = engines.get("llamacpp")
        if "server" in asked and isinstance(behind, LlamaCppEngine):
            try:
                engines["server"] = over_http(spec, behind)
            except TransLLMError as error:
                print(f"without server: {error}", flush=True)
        yield engines
    finally:
        for engine in engines.values():
            engine.close()


def over_http(spec: EngineSpec, behind: LlamaCppEngine) -> ConversationEngine:
    """The engine for servers, asking the server that llama.cpp brings (the one that ``llamacpp`` has started)."""
    address, key = behind.serve(context=512)
    os.environ["TRANSLLM_BENCHMARK_KEY"] = key
    settings = EngineSettings(name="server", url=f"{address}/v1", model="smollm2", key_env="TRANSLLM_BENCHMARK_KEY",
                              body={"cache_prompt": False})
    return open_engine(replace(spec, settings=settings))


def same_text(found: Mapping[int, Reply], other: Mapping[int, Reply]) -> dict[str, Any]:
    """Of how many prompts both texts are the same, and after how many tokens the others part, where both tell their tokens."""
    both = sorted(set(found) & set(other))
    parted = [next((place for place, (one, two) in enumerate(zip(found[number].ids, other[number].ids, strict=False)) if one != two),
                   min(len(found[number].ids), len(other[number].ids)))
              for number in both if found[number].text != other[number].text and found[number].ids and other[number].ids]
    same = sum(found[number].text == other[number].text for number in both)
    return {"share": round(same / len(both), 3), "of": len(both), "parted_after": statistics.median(parted) if parted else None}


def spread(values: Sequence[float], *, digits: int = 2) -> dict[str, Any]:
    """Median, lowest and highest."""
    return {"median": round(statistics.median(values), digits), "spread": [round(min(values), digits), round(max(values), digits)]}


def race(engines: Mapping[str, ConversationEngine], loaded: LoadedModel, rounds: Sequence[Sequence[Conversation]], naive: int,
         sampling: ReplySampling) -> tuple[dict[str, list[Timed]], dict[str, dict[int, Reply]]]:
    """All turns, and all replies by engine and prompt."""
    turns: dict[str, list[Timed]] = {name: [] for name in ("naive", *engines)}
    replies: dict[str, dict[int, Reply]] = {name: {} for name in turns}
    contenders: dict[str, ConversationEngine] = {"naive": Naive(loaded), **engines}
    for engine in contenders.values():  # generated code, first allocations, a server's start
        list(engine.generate(rounds[0][:2], sampling=replace(sampling, max_new_tokens=4)))
    first = 0
    for number, conversations in enumerate(rounds, 1):
        for name, engine in contenders.items():
            turn = timed(engine, conversations[:naive] if name == "naive" else conversations, sampling)
            turns[name].append(turn)
            replies[name] |= {first + reply.index: reply for reply in turn.replies}
            print(f"round {number}  {name:12}  {len(turn.replies):4} answers  {turn.answers_per_second:6.2f} answers/s  "
                  f"{turn.tokens_per_second:6.0f} tokens/s", flush=True)
        first += len(conversations)
    return turns, replies


def main() -> None:
    """Choose, race, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prompts", type=int, default=256)
    arguments.add_argument("--tokens", type=int, default=40)
    arguments.add_argument("--naive", type=int, default=6, help="prompts of each round that naive answers")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--engines", nargs="+", choices=NAMES, default=NAMES)
    given = arguments.parse_args()
    recipe = load_recipe(HERE.parent / "recipes" / "demo-es.yaml")
    spec = EngineSpec.of(recipe)
    started = time.perf_counter()
    engine, choice = fastest(replace(spec, settings=EngineSettings(name="auto")))
    engine.close()
    print(f"auto took {time.perf_counter() - started:.0f} s: {choice.why}", flush=True)
    loaded = load_chat_model(recipe.model, folder=recipe.folder)
    device = default_device()
    place(loaded.model, device, compute_dtype(recipe.training.precision, device))
    asked = prompts(given.prompts)
    size = -(-len(asked) // given.rounds)
    with opened(spec, [name for name in NAMES if name in given.engines or name == choice.name]) as engines:
        turns, replies = race(engines, loaded, [asked[start: start + size] for start in range(0, len(asked), size)], given.naive,
                              ReplySampling(given.tokens))
    speeds = {name: [turn.answers_per_second for turn in found] for name, found in turns.items()}
    best = [max(found) for found in zip(*(speeds[name] for name in engines), strict=True)]
    vs_naive = spread([one / two for one, two in zip(speeds[choice.name], speeds["naive"], strict=True)])
    vs_best = spread([one / two for one, two in zip(speeds[choice.name], best, strict=True)])
    print(json.dumps({
        "threads": torch.get_num_threads(), "prompts": len(asked), "tokens": given.tokens, "rounds": given.rounds, "auto": choice.name,
        "vs_naive": vs_naive["median"], "vs_naive_spread": vs_naive["spread"],
        "auto_vs_best": vs_best["median"], "auto_vs_best_spread": vs_best["spread"],
        "answers_per_second": {name: spread(found) for name, found in speeds.items()},
        "tokens_per_second": {name: spread([turn.tokens_per_second for turn in found], digits=0) for name, found in turns.items()},
        "same_text": {name: same_text(replies[name], replies["transformers"]) for name in turns
                      if name != "transformers" and "transformers" in replies}}))


if __name__ == "__main__":
    main()
