"""The extended tokenizer against the figures it is to reach: fewer tokens, English and code as before, as fast as the original.

    python benchmarks/tokenizer.py [--data ../shared/data] [--pieces 8000] [--rounds 21]

The original is the tokenizer of recipes/demo-es.yaml. Thai sub-words are learned on 20 million characters of mono/, Spanish ones on the
target sides of parallel/*es*; tokens are counted on bench/pud500 (never learned on), and English on 10,000 sentences that no filter
saw. The time of learning and merging, and the largest memory meanwhile, are those of the Thai extension, in a process of its own. Last,
one line of JSON. Without the data, or a part of it, it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import lzma
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from demo import english_sentences

from transllm import load_recipe
from transllm.languages import LANGUAGES
from transllm.model import load_chat_model
from transllm.pipeline.corpus import program_text
from transllm.pipeline.memory import PeakMemory
from transllm.tokenizer import (
    Learned,
    Script,
    compare,
    extend_tokenizer,
    fertility,
    learn_merges,
    load_tokenizer,
    marker_texts,
    save_tokenizer,
    script_of,
    throughput,
)

ROOT = Path(__file__).parents[1]
SENTENCES = 10_000
THAI = ("mono/iapp_thwiki_articles.jsonl.xz", "mono/wisesight_neg.th.txt.xz", "mono/wisesight_neu.th.txt.xz",
        "mono/wisesight_pos.th.txt.xz", "mono/wisesight_q.th.txt.xz", "mono/thaigov_v2_train_80M.jsonl.xz")
PAIRS = {"parallel/ddtp_en-es.tsv.gz": (0, 1), "parallel/en-es_bible_WEB-RV1909.tsv.gz": (1, 2),
         "parallel/en-es_pip_ui_l10n.tsv.gz": (0, 1), "parallel/lohelp_en-es.tsv.gz": (0, 1)}
"""Files, and which columns hold English and Spanish."""
PUD = {"th": "bench/pud500_en-th.tsv", "es": "bench/pud500_en-es.tsv"}


def thai_texts(data: Path, left: int) -> list[str]:
    """The documents of mono/, small sources first, up to so many characters."""
    taken: list[str] = []
    for name in THAI:
        with lzma.open(data / name, "rt", encoding="utf-8") as file:
            for line in file:
                text = line.rstrip("\n") if ".txt." in name else json.loads(line)["text"]
                taken.append(text[:left])
                left -= len(taken[-1])
                if left <= 0:
                    return taken
    return taken


def pairs(data: Path) -> Iterator[tuple[str, str]]:
    """(English, Spanish) of parallel/*es*."""
    for name, (english, spanish) in PAIRS.items():
        with gzip.open(data / name, "rt", encoding="utf-8", newline="") as file:
            for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                yield row[english], row[spanish]


def pud(data: Path, code: str) -> tuple[list[str], list[str]]:
    """English and target sentences of PUD's first 500."""
    with (data / PUD[code]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row[-2] for row in rows], [row[-1] for row in rows]


def build(code: str, original: str, data: Path, pieces: int, characters: int, out: str) -> None:
    """Learn and merge, in a process of its own; writes the tokenizer and what it took."""
    tokenizer = load_tokenizer(Path(original))
    both = list(pairs(data))
    english = [row[0] for row in both]
    target = thai_texts(data, characters) if code == "th" else [row[1] for row in both]
    started, worked = time.perf_counter(), time.process_time()
    with PeakMemory() as memory:
        learned = learn_merges(tokenizer, target, english, size=pieces, min_count=5 if code == "th" else 2, latin=LANGUAGES[code].latin)
        extended = extend_tokenizer(tokenizer, learned, markers=marker_texts(LANGUAGES[code]), pad=None)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    save_tokenizer(extended, Path(out))
    (Path(out) / "facts.json").write_text(json.dumps({
        "seconds": seconds, "processor_seconds": worked, "peak_gib": memory.gib, "characters": sum(map(len, target)), **_facts(learned)}),
        encoding="utf-8")


def _facts(learned: Learned) -> dict[str, Any]:
    return {"pieces": len(learned.pieces), "dropped": learned.dropped, "only_parts": learned.only_parts, "pre_tokens": learned.pre_tokens,
            "curve": [point for point in learned.curve if point[0] % 1000 == 0]}


def unseen_english(data: Path, *, without: Script) -> list[str]:
    """Sentences that no filter saw."""
    found = sorted({sentence.strip() for sentence in english_sentences(data) if len(sentence.split()) >= 4})
    random.Random(0).shuffle(found)
    return [sentence for sentence in found if not without.found_in(sentence)][:SENTENCES]


def measure(code: str, original: Any, folder: Path, data: Path, rounds: int) -> dict[str, float]:
    """Tokens, what is cut as before, and throughput of one language."""
    extended = load_tokenizer(folder)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    english, target = pud(data, code)
    before, after = (fertility(tokenizer, target) for tokenizer in (original, extended))
    name = LANGUAGES[code].name
    print(f"\n{name}: {facts['pieces']:,} sub-words from {facts['characters']:,} characters in {facts['seconds']:.1f} s "
          f"({facts['processor_seconds']:.1f} s of processor time), {facts['peak_gib']:.2f} GiB; dropped {facts['dropped']}; "
          f"{facts['only_parts']} stand only in longer ones; "
          f"pre-tokens {facts['pre_tokens']}")
    print(f"  sub-words: tokens of the sample  {', '.join(f'{pieces:,}: {tokens:,}' for pieces, tokens in facts['curve'])}")
    print(f"  PUD, 500 sentences: {before.tokens:,} tokens before, {after.tokens:,} after: {before.tokens / after.tokens:.3f} times fewer; "
          f"a word {before.tokens_per_word:.2f} -> {after.tokens_per_word:.2f}, a character {before.tokens_per_character:.3f} -> "
          f"{after.tokens_per_character:.3f}, a byte {before.tokens_per_byte:.3f} -> {after.tokens_per_byte:.3f}")
    script = Script() if LANGUAGES[code].latin else script_of(target)
    shares = {}
    for what, lines in (("English sentences", unseen_english(data, without=script)), ("lines of code", program_text(without=script))):
        found = compare(original, extended, lines)
        shares[what] = found.identical / found.sentences
        print(f"  {what}: {found.identical:,} of {found.sentences:,} are cut as before ({shares[what]:.2%})")
        for difference in found.differences[:5]:
            print(f"    differs: {str(difference['text'])[:100]}")
    figures = {"fewer": before.tokens / after.tokens, "english": shares["English sentences"], "seconds": facts["seconds"],
               "processor_seconds": facts["processor_seconds"],
               "peak_gib": facts["peak_gib"]}
    for what, texts in (("english", english), ("target", target)):
        speeds = throughput(original, extended, texts * 4, rounds=rounds)
        low, high = speeds.spread
        print(f"  throughput on PUD's {what} side: ratio {speeds.ratio:.3f}, quartiles {low:.3f} to {high:.3f} of {rounds} rounds; "
              f"{sorted(speeds.before)[rounds // 2]:,.0f} characters/s before, {sorted(speeds.after)[rounds // 2]:,.0f} after")
        figures[f"throughput_{what}"] = speeds.ratio
    return figures


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--characters", type=int, default=20_000_000, help="of Thai to learn on")
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    missing = [name for name in (*THAI, *PAIRS, *PUD.values()) if not (given.data / name).is_file()]
    if missing:
        print(f"The data of this benchmark is not there: {', '.join(missing)} under '{given.data}'. Name its folder with --data.",
              file=sys.stderr)
        raise SystemExit(2)
    recipe = load_recipe(ROOT / "recipes" / "demo-es.yaml")
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(load_chat_model(recipe.model, folder=recipe.folder).tokenizer, Path(name) / "original")
        original = load_tokenizer(Path(name) / "original")
        found = {}
        for code in ("th", "es"):
            process = multiprocessing.get_context("spawn").Process(
                target=build, args=(code, str(Path(name) / "original"), given.data, given.pieces, given.characters,
                                    str(Path(name) / code)))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(1)
            found[code] = measure(code, original, Path(name) / code, given.data, given.rounds)
    thai, spanish = found["th"], found["es"]
    print(json.dumps({
        "thai_fewer_tokens": thai["fewer"], "spanish_fewer_tokens": spanish["fewer"], "english_identical": thai["english"],
        "english_identical_spanish": spanish["english"], "throughput_ratio_english": thai["throughput_english"],
        "throughput_ratio_thai": thai["throughput_target"], "learn_seconds": thai["seconds"],
        "learn_processor_seconds": thai["processor_seconds"], "peak_gib": thai["peak_gib"]}))


if __name__ == "__main__":
    main()
