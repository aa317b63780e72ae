"""Write a finished run as a page for docs/results: what was run where, the before/after table, conversations and translations unedited.

    python benchmarks/results.py runs/demo-es > docs/results/demo-es.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from transllm.evaluation.metrics import Metrics
from transllm.evaluation.table import before_after, show_value

CONVERSATIONS = 3


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def quoted(text: str | None) -> str:
    """A model's words on one line of a quote."""
    return " ".join((text or "(nothing)").split())


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    metrics = Metrics.read(run / "metrics.json")
    manifests: dict[str, dict[str, Any]] = {file.parent.name: json.loads(file.read_text(encoding="utf-8"))
                                            for file in run.glob("*/manifest.json")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    status = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True)
    seconds = sum(manifest["seconds"] for manifest in manifests.values())
    print(f"# {run.name}\n")
    print(f"`transllm run recipes/{run.name}.yaml`, finished {manifests['evaluate']['finished']}, "
          f"commit {commit}{' with changes' if status.stdout.strip() else ''}, "
          f"{processor()}, {os.cpu_count()} cores. {seconds / 60:.1f} minutes, "
          f"{max(manifest['peak_memory_gib'] for manifest in manifests.values()):.1f} GiB at most.\n")
    print(f"Translation on {metrics.settings.get('test_pairs')} ({metrics.settings.get('sentences')} sentences, "
          f"beams: {metrics.settings.get('beams', 1)}); "
          f"{metrics.settings.get('queries')} queries from {metrics.settings.get('query_source')}.\n")
    table = before_after(metrics)
    print("| figure | unit | original | " + " | ".join(table.stages) + " | change |\n|---|---|" + "---|" * (len(table.stages) + 2))
    for row in table.rows:
        cells = [show_value(row.figure, value) for value in (row.original, *(row.stages[stage] for stage in table.stages))]
        print(f"| {row.label} | {row.unit} | " + " | ".join(cells) + f" | {row.change.text}, {row.change.verdict} |")
    print("\n| stage | seconds | tokens | tokens/s | peak GiB |\n|---|---|---|---|---|")
    for name, manifest in sorted(manifests.items(), key=lambda item: item[1]["finished"]):
        print(f"| {name} | {manifest['seconds']:.0f} | {manifest['tokens'] or '-'} | {manifest['metrics'].get('tokens_per_second', '-')} | "
              f"{manifest['peak_memory_gib']:.2f} |")
    samples = json.loads((run / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    print(f"\n## Conversations, unedited (the first {CONVERSATIONS} queries)\n")
    for conversation in [one for one in samples["conversations"] if one["stage"] == "merge"][:CONVERSATIONS]:
        for turn in conversation["turns"]:
            print(f"- **{quoted(turn['query'])}**\n  - in English: {quoted(turn['query_en'])}\n"
                  f"  - answer in English: {quoted(turn['answer_en'])}\n  - answer: {quoted(turn['answer'])}")
    print("\n## Translations, unedited\n")
    for row in samples["translations"]:
        print(f"- {quoted(row['english'])} → {quoted(row.get('merge_en_target'))} (reference: {quoted(row['target'])})\n"
              f"- {quoted(row['target'])} → {quoted(row.get('merge_target_en'))} (reference: {quoted(row['english'])})")


if __name__ == "__main__":
    main()
