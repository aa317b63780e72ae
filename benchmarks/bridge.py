"""How good the bridge's examples are, and whether its scores know: for each translator, with and without a reference.

    python benchmarks/bridge.py runs/demo-es [--translators self apertium] [--pairs PAIRS.tsv] [--sheet FOLDER] [--encoders self use]

Reads a run in which *bitext* and *recover* are done and changes nothing in it; work is kept in --work, so a second call is quick.
1. Encoders: true pairs (English first, tab, target) against the same pairs shuffled: area under the ROC curve, and how often a text's
   translation is the nearest of all.
2. Filters: the run's own conversations through *bridge*: what each filter keeps.
3. Scores: the pairs' English sides translated, chrF to the reference and of the round trip, for what a score keeps and drops.
4. --sheet: 40 translated examples of each translator in one shuffled list without names (sheet.md), and who wrote which (key.json).
   Write a line "number TAB verdict TAB note" for each into verdicts.tsv beside it; the next call counts them.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transllm.files import read_jsonl, write_json, write_text
from transllm.pipeline.bridge import bridge
from transllm.pipeline.encoder import open_encoder
from transllm.pipeline.stage import Context
from transllm.pipeline.translators import make_translator
from transllm.progress import Silent
from transllm.recipe import load_recipe
from transllm.translation import Encoder, combined, round_trip, similarities
from transllm.translation.encoders import Vectors

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
EXAMPLES = 40
VERDICTS = ("ok", "minor", "wrong", "nonsense")


class Remembering:
    """An encoder that reads each text once."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self._encoder = encoder.name, encoder
        self._known: dict[tuple[str, str], Any] = {}

    def encode(self, texts: Sequence[str], *, language: Literal["english", "target"]) -> Vectors:
        """See ``Encoder.encode``."""
        new = [text for text in dict.fromkeys(texts) if (text, language) not in self._known]
        if new:
            vectors = self._encoder.encode(new, language=language)
            self._known |= {(text, language): vector for text, vector in zip(new, vectors, strict=True)}
        return np.stack([self._known[text, language] for text in texts])


def context_of(run: Path, folder: Path, **bridge_settings: Any) -> Context:
    """The run with other settings of *bridge*, which works in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Context(load_recipe(run / "recipe.yaml", overrides=[f"bridge.{key}={value}" for key, value in bridge_settings.items()]), run,
                   folder, Silent())


def separation(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """How an encoder tells true pairs from shuffled ones."""
    english, target = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    true = np.array(similarities(encoder, english, target))
    false = np.concatenate([similarities(encoder, english, target[by:] + target[:by]) for by in (7, 31, 123)])
    sides = []
    for texts, language in ((english, "english"), (target, "target")):
        vectors = encoder.encode(texts, language=language)  # type: ignore[arg-type]
        vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
        sides.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    alike = sides[0] @ sides[1].T
    nearest = [(alike.argmax(axis) == np.arange(len(pairs))).mean() for axis in (0, 1)]
    return {"auc": float((true[:, None] > false[None]).mean()), "nearest": float(np.mean(nearest))}


def filters(run: Path, work: Path, translator: str, encoder: str) -> dict[str, Any]:
    """The run's conversations through *bridge*; translations of an earlier call, or of the run itself, are taken."""
    context = context_of(run, work / translator, translator=translator, encoder=encoder)
    theirs = run / "bridge" / "translated.jsonl"
    if context.recipe.bridge.translator == load_recipe(run / "recipe.yaml").bridge.translator and theirs.exists():
        shutil.copy(theirs, context.folder / "translated.jsonl")
    result = bridge(context)
    return {**result.counts["chains"], **result.metrics}


def translated(run: Path, work: Path, translator: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The pairs' English sides there and back."""
    file = work / translator / "pairs.jsonl"
    if not file.exists():
        context = context_of(run, work / translator, translator=translator)
        opened = make_translator(context)
        made = opened.translate([pair[0] for pair in pairs], to="target", progress=Silent(), label="")
        back = opened.translate([one.text for one in made], to="english", progress=Silent(), label="")
        write_text(file, "".join(json.dumps({"english": pair[0], "reference": pair[1], "made": one.text, "back": other.text},
                                            ensure_ascii=False) + "\n" for pair, one, other in zip(pairs, made, back, strict=True)))
    return [row for row in read_jsonl(file) if row["made"]]


def scores(rows: Sequence[dict[str, str]], encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """chrF to the reference of what each score keeps and drops, the rank correlation of score and chrF, and chrF to another's reference."""
    english, made, reference = ([row[key] for row in rows] for key in ("english", "made", "reference"))
    right = np.array(round_trip(reference, made))
    back = round_trip(english, [row["back"] for row in rows])
    measures: dict[str, Sequence[float]] = {"round trip": back}
    for name, encoder in encoders.items():
        measures[name] = similarities(encoder, english, made)
        measures[f"{name} and round trip"] = combined(measures[name], back)
    found: dict[str, Any] = {"sentences": len(rows), "chrf": round(float(right.mean()), 1), "round_trip": round(float(np.mean(back)), 1),
                             "chrf_of_others": round(float(np.mean(round_trip(reference[1:] + reference[:1], made))), 1)}
    for name, values in measures.items():
        order = np.argsort(values, kind="stable")
        cut = {f"{share:.0%}": [round(float(right[part].mean()), 1) for part in (order[round(share * len(order)):],
                                                                                order[: round(share * len(order))])] for share in SHARES}
        ranks = [np.argsort(np.argsort(one, kind="stable")) for one in (values, right)]
        related: Any = np.corrcoef(ranks)
        found[name] = {"rank_correlation": round(float(related[0, 1]), 3), "chrf_kept_dropped": cut}
    return found


def sheet(work: Path, translators: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write the blind sheet, or count the verdicts on it."""
    verdicts = folder / "verdicts.tsv"
    if not verdicts.exists():
        drawn = []
        for name in translators:
            rows = [row | {"kept": kept} for file, kept in (("chains", True), ("rejects", False))
                    for row in read_jsonl(work / name / f"{file}.jsonl") if "score" in row]
            rows.sort(key=lambda row: row["query_en"])
            drawn += [{"translator": name, **row} for row in random.Random(5).sample(rows, EXAMPLES)]
        random.Random(11).shuffle(drawn)
        write_json(folder / "key.json", drawn)
        write_text(folder / "sheet.md", "\n".join(f"{number}. Q: {row['query_en']}\n   → {row['query']}\n   A: {row['answer_en']}\n"
                                                  f"   → {row['answer']}\n" for number, row in enumerate(drawn, 1)))
        return {}
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    judged = [line.split("\t") for line in verdicts.read_text(encoding="utf-8").splitlines()]
    assert [int(line[0]) for line in judged] == list(range(1, len(key) + 1)) and {line[1] for line in judged} <= set(VERDICTS)
    lines, counts = [], {name: {"kept": Counter[str](), "dropped": Counter[str]()} for name in translators}
    for (number, verdict, note), row in zip(judged, key, strict=True):
        counts[row["translator"]]["kept" if row["kept"] else "dropped"][verdict] += 1
        cells = (number, row["translator"], verdict, note, f"{row['similarity']:.2f}{'' if row['kept'] else ', dropped'}",
                 row["query_en"], row["query"], row["answer_en"], row["answer"])
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    write_text(folder / "judged.md", "| | by | verdict | what is wrong | similarity | query | translated | answer | translated |\n"
               "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n")
    return {name: {part: {verdict: found[verdict] for verdict in VERDICTS} for part, found in both.items()}
            for name, both in counts.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--translators", nargs="+", default=["self", "apertium"])
    parser.add_argument("--encoders", nargs="+", default=["self", "use"])
    parser.add_argument("--pairs", type=Path, default=Path("../shared/data/bench/tatoeba_en-spa.tsv"))
    parser.add_argument("--sentences", type=int, default=200, help="to translate: the last ones of the pairs; the first serve 1.")
    parser.add_argument("--work", type=Path, default=Path("runs/bridge-benchmark"))
    parser.add_argument("--sheet", type=Path)
    asked = parser.parse_args()
    lines = asked.pairs.read_text(encoding="utf-8").splitlines()
    pairs = [(english, target) for english, target in (line.split("\t")[:2] for line in lines)]
    encoders = {name: Remembering(open_encoder(context_of(asked.run, asked.work, encoder=name))) for name in asked.encoders}
    figures: dict[str, Any] = {"encoders": {name: separation(encoder, pairs[: -asked.sentences]) for name, encoder in encoders.items()}}
    print(json.dumps(figures, indent=1), flush=True)
    for name in asked.translators:
        figures[name] = {"filters": filters(asked.run, asked.work, name, asked.encoders[0]),
                         "scores": scores(translated(asked.run, asked.work, name, pairs[-asked.sentences:]), encoders)}
        print(name, json.dumps(figures[name], indent=1, ensure_ascii=False), flush=True)
    if asked.sheet is not None:
        asked.sheet.mkdir(parents=True, exist_ok=True)
        figures["verdicts"] = sheet(asked.work, asked.translators, asked.sheet)
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
