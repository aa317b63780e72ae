"""How often the structure of a text survives a translator: as it is, with each form of masks, and through the library's steps.

    python benchmarks/structure.py runs/demo-es [--translator self apertium] [--texts 20]

The texts are 20 written by hand (structure_texts.jsonl: code, links, tables, placeholders, numbers, lists) and the first answers of the
run's *recover* with code, lists or numbers in them. Prints a table, what was lost, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from transllm import load_recipe
from transllm.pipeline.stage import Context
from transllm.pipeline.translators import open_sentences
from transllm.progress import Silent
from transllm.translation import SentenceTranslator, TextTranslator, lost_structure
from transllm.translation.masks import MaskForm
from transllm.translation.sentences import split_text

FORMS = [MaskForm(template) for template in ("[{}]", "X{}", "<x{}>", "⟦{}⟧", "#{}#", "@{}", "__{}__", "Q{}Z", "({})", '"{}"')]
_STRUCTURE = re.compile(r"`|\d|https?:|[{}]|^\s*(?:[-*]|\d+\.) ", re.MULTILINE)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--translator", nargs="+", default=["self", "apertium"])
    arguments.add_argument("--texts", type=int, default=20, help="answers of the run")
    chosen = arguments.parse_args()
    lines = Path(__file__).with_name("structure_texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    said = (chosen.run / "recover" / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in said]
    texts += [answer for answer in answers if _STRUCTURE.search(answer)][: chosen.texts]
    figures = {name: measure(chosen.run, name, texts) for name in chosen.translator}
    print(json.dumps(figures))


def measure(run: Path, name: str, texts: list[str]) -> dict[str, Any]:
    """All figures of one translator."""
    recipe = load_recipe(run / "recipe.yaml", overrides=[f"bridge.translator={name}"])
    translator = open_sentences(Context(recipe, run, run / "bridge", Silent()))
    figures: dict[str, Any] = {"texts": len(texts)}
    for way, protect in (("as it is", False), ("protected", True)):
        started = time.monotonic()
        made = TextTranslator(translator, protect=protect).translate(texts, to="target", progress=Silent(), label="")
        lost = [lost_structure(text, one.text) for text, one in zip(texts, made, strict=True)]
        figures[way] = sum(not pieces for pieces in lost)
        figures[f"{way}, seconds"] = round(time.monotonic() - started, 1)
        print(f"{name}, {way}: {figures[way]} of {len(texts)} texts whole")
        for text, one, pieces in zip(texts, made, lost, strict=True):
            print("  ", json.dumps({"text": text, "translation": one.text, "lost": pieces}, ensure_ascii=False))
    figures |= {"masks": {form.template.format(1): masks_kept(translator, form, texts) for form in FORMS}}
    print(f"{name}, sentences of which all masks came back: {figures['masks']}")
    return figures


def masks_kept(translator: SentenceTranslator, form: MaskForm, texts: list[str]) -> str:
    """Of the sentences with protected pieces, how many come back with each mask once."""
    sentences = list(dict.fromkeys(sentence for text in texts for sentence in split_text(text).sentences if sentence.pieces))
    made = {index: one.text for index, one in translator.sentences([form.write(one.text) for one in sentences], to="target")}
    return f"{sum(form.read(one.text, made[index]) is not None for index, one in enumerate(sentences))} of {len(sentences)}"


if __name__ == "__main__":
    main()
