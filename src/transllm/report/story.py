"""What changed, in words made from the numbers. Gains and losses are chosen, ordered and counted by the same rule.

No sentence here says more than a figure of the table, and a figure that got worse is never left to the table alone if
one that got better is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transllm.evaluation.metrics import Metrics
from transllm.evaluation.table import MINUS, PERCENT, TIMES, Row, Table, Verdict

MOST = 3
"""Clauses of each kind in the headline; the rest are counted."""

TILES = ("bits_per_byte_target", "chrf_en_target", "chrf_target_en", "answer_in_target",
         "bits_per_byte_english", "kl_to_original", "tokens_per_answer", "seconds_per_answer")
"""Four figures that should improve, then four that may pay for it."""

_ORDER = ("bits_per_byte_target", "chrf_en_target", "chrf_target_en", "answer_in_target", "bits_per_byte_english", "kl_to_original",
          "tokens_per_answer", "tcot_well_formed", "same_next_token", "seconds_per_answer")


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence beside the table, with its judgement."""

    text: str
    verdict: Verdict


def fewer_tokens(metrics: Mapping[str, Any], *, target: str) -> str:
    """What an extension brings, in one sentence, from the figures of *extend*."""
    both = metrics["fertility"]["target"]
    fewer = both["before"]["tokens"] / (both["after"]["tokens"] or 1)
    return _sentence(f"{target} takes {fewer:.2f} times fewer tokens. The new rows are initialised and not trained yet")


def headline(table: Table, *, target: str) -> str:
    """What changed from the original to the last model, in one sentence."""
    if table.final is None:
        return "Nothing has been compared yet: the figures come with the stage “evaluate”."
    better, worse = _clauses(table, "better", target), _clauses(table, "worse", target)
    if better and worse:
        return _sentence(f"{_list(better)}; on the other side, {_list(worse)}")
    if better:
        return _sentence(f"{_list(better)}; nothing that was measured got worse beyond its tolerance")
    if worse:
        return _sentence(f"{_list(worse)}; nothing that was measured got better beyond its tolerance")
    return "Nothing that was measured changed beyond its tolerance."


def tally(table: Table) -> str:
    """How many figures moved which way."""
    counts = [f"{len(rows)} {word}" for word, rows in (("better", table.with_verdict("better")), ("worse", table.with_verdict("worse")),
                                                       ("the same", table.with_verdict("same"))) if rows]
    unknown = len(table.with_verdict("unknown"))
    if unknown:
        counts.append(f"{unknown} not comparable")
    judged = f"Original against {table.final}, {len(table.rows)} figures: " if table.final else ""
    return judged + ", ".join(counts) + "." if judged else ""


def recovery(metrics: Metrics) -> Remark | None:
    """Whether the last training stage brought the model back to the original's English, or drove it further away."""
    values = [metrics.stages[stage].kl_to_original if stage in metrics.stages else None for stage in ("bitext", "finetune")]
    before, after = values
    if before is None or after is None or not before:
        return None
    moved = (after - before) / before
    way: Verdict = "same" if abs(moved) <= 0.05 else "better" if moved < 0 else "worse"
    verb = {"same": "left", "better": "recovered", "worse": "did not recover"}[way]
    change = f"{abs(moved) * 100:.0f}{PERCENT} {'less' if moved < 0 else 'more'}"
    ending = "" if way != "same" else " as it was"
    return Remark(f"Fine-tuning {verb} the original's English{ending}: KL to the original {before:.3f} after bitext, "
                  f"{after:.3f} after finetune ({change}).", way)


def _clauses(table: Table, verdict: Verdict, target: str) -> list[str]:
    rows = {row.key: row for row in table.with_verdict(verdict)}
    clauses = []
    pair = [rows[key] for key in ("chrf_en_target", "chrf_target_en") if key in rows]
    for key in _ORDER:
        row = rows.get(key)
        if row is None or (len(pair) == 2 and key == "chrf_target_en"):
            continue
        clauses.append(_translation(pair, target) if row in pair else _clause(row, table, target))
    return clauses[:MOST]


def _translation(pair: list[Row], target: str) -> str:
    """Both directions in one clause where they moved the same way."""
    ways = {"chrf_en_target": f"into {target}", "chrf_target_en": f"from {target}"}
    units = (" points of chrF", "")
    amounts = [f"{abs(row.change.difference or 0):.1f}{unit} {ways[row.key]}" for row, unit in zip(pair, units, strict=False)]
    return f"translation {'gained' if pair[0].change.verdict == 'better' else 'lost'} " + " and ".join(amounts)


def _clause(row: Row, table: Table, target: str) -> str:
    after = row.stages[table.final] if table.final else None
    shown = f"{row.show(after)}{row.suffix}"
    before = f"{row.show(row.original)}{row.suffix}"
    more = "more" if (row.change.difference or 0) > 0 else "fewer"
    amount = row.change.text.lstrip("+" + MINUS)
    times = amount.startswith(TIMES)
    if row.key.startswith("bits_per_byte"):
        language = target if row.key.endswith("target") else "English"
        return f"{language} text takes {amount[1:] + ' times the' if times else amount + ' ' + more} bits per byte"
    if row.key.endswith("_per_answer"):
        unit = row.key.split("_")[0]
        return f"an answer takes {amount[1:] + ' times the' if times else amount + ' ' + more} {unit}"
    return {
        "answer_in_target": f"{shown} of answers are in {target} (before: {before})",
        "tcot_well_formed": f"{shown} of chains are well-formed without guidance (before: {before})",
        "kl_to_original": f"English answers moved {shown} nats a token away from the original's",
        "same_next_token": f"the next token of English answers is the original's in {shown} of places (before: {before})",
    }[row.key]


def _list(clauses: list[str]) -> str:
    # The comma before "and" keeps apart clauses that have an "and" of their own.
    return clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + (", and " if len(clauses) > 2 else " and ") + clauses[-1]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
