"""``build_report``: a run folder in, one self-contained page out.

The page needs no network and no script, and its content-security policy forbids both. Everything that comes from outside
(model answers, recipes, source names) is escaped by the template; only our own SVG and CSS are inserted as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from transllm.evaluation.table import NULL, arrow, before_after, show_tolerance
from transllm.files import write_text
from transllm.report import plots, story
from transllm.report.run import STAGES, TRAINING_STAGES, Conversation, Manifest, RunView, Turn, read_run, translation_stages

MOST_SAMPLES = 20
"""Talks and translations on the page; the files hold the rest."""

_TITLES = {
    "extend": "new sub-words, grown embeddings", "pretrain": "target-language text", "bitext": "sentence pairs, both directions",
    "recover": "the original answers English prompts", "bridge": "its answers become chains", "finetune": "recovery, chains, translation",
    "merge": "adapter into the weights", "evaluate": "all models on held-out data",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot, or a word about why there is none. ``svg`` is markup of :mod:`transllm.report.plots`, or empty."""

    title: str
    svg: str
    alt: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, and what each model made of it: its stages and their turn."""

    query: str
    turns: list[tuple[str, Turn]]


def build_report(run: Path) -> Path:
    """Write report.html into a run folder, finished or not, and return its path.

    Raises:
        RunError: it is no run folder, or the page cannot be written.
        DataError: a file of the run is broken; the message names it.
    """
    view = read_run(run)
    page = run / "report.html"
    write_text(page, render(view))
    return page


def render(view: RunView) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("transllm.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count=show_count, duration=show_duration, decimals=show_decimals, svg=Markup, day=show_day)
    return environment.get_template("report.html.j2").render(null=NULL, arrow=arrow, tolerance=show_tolerance, **context(view))


def context(view: RunView) -> dict[str, Any]:
    """All values of the template, by the section that uses them."""
    language = view.language
    table = before_after(view.metrics, target=language.name)
    talks = side_by_side(view.samples.conversations)
    done = [stage for stage in STAGES if view.states[stage] == "done"]
    return {
        "run": view, "language": language, "done": done, "stages": STAGES,
        "pending": {state: [stage for stage in STAGES if view.states[stage] == state] for state in ("unfinished", "not run yet")
                    if state in view.states.values()},
        "stage_titles": _TITLES,
        "only_extension": view.only_extension,
        "headline": story.fewer_tokens(view.manifests["extend"].metrics, target=language.name)
        if view.only_extension and "extend" in view.manifests else story.headline(table, target=language.name),
        "tally": story.tally(table),
        "recovery": story.recovery(view.metrics), "tiles": [row for key in story.TILES if (row := table.row(key)) and table.final],
        "table": table, "settings": _settings(view.metrics.settings),
        "curves": [(stage, _curves(view, stage)) for stage in TRAINING_STAGES],
        "fertility": _fertility(view), "sizes": _sizes(view), "extension": _extension(view),
        "talks": talks[:MOST_SAMPLES], "talks_total": len(talks),
        "translations": view.samples.translations[:MOST_SAMPLES], "translations_total": len(view.samples.translations),
        "translators": translation_stages(view.samples.translations),
        "cost": _cost(view), "repeat": _repeat(view),
    }


def side_by_side(conversations: Sequence[Conversation]) -> list[list[Asked]]:
    """Talks of the same queries together, models in their order. Models that said the same, as *merge* should, share a place."""
    same_queries: dict[tuple[str, ...], list[Conversation]] = {}
    for conversation in conversations:
        same_queries.setdefault(tuple(turn.query for turn in conversation.turns), []).append(conversation)
    talks = []
    for queries, found in same_queries.items():
        models: list[tuple[str, list[Turn]]] = []
        for conversation in found:
            if models and models[-1][1] == conversation.turns:
                models[-1] = (f"{models[-1][0]}, {conversation.stage}", conversation.turns)
            else:
                models.append((conversation.stage, conversation.turns))
        talks.append([Asked(query, [(stages, turns[place]) for stages, turns in models]) for place, query in enumerate(queries)])
    return talks


def _settings(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings that fit a line (names, counts), and longer ones, such as sacrebleu's signatures, flattened."""
    short = {name.replace("_", " "): value for name, value in settings.items()
             if isinstance(value, (str, int, float)) and len(str(value)) <= 60}
    long: dict[str, Any] = {}
    for name, value in settings.items():
        if name.replace("_", " ") in short:
            continue
        parts = value if isinstance(value, dict) else {"": value}
        long.update({f"{name} {part}".replace("_", " ").strip(): text for part, text in parts.items()})
    return {"short": short, "long": long}


def _curves(view: RunView, stage: str) -> list[Panel]:
    """Loss, then bits per byte, of one training stage; empty where there is no log."""
    curve = view.curves.get(stage)
    if curve is None or not (curve.loss or curve.bits_per_byte or curve.held_out):
        return []
    panels = [Panel("loss", plots.curve_plot(curve.loss, name=f"{stage}-loss", label="nats per label"), _alt("Loss", curve.loss))]
    panels.append(Panel("bits per byte", plots.curve_plot(curve.bits_per_byte, curve.held_out, name=f"{stage}-bits", label="bits per byte"),
                        _alt("Bits per byte", curve.bits_per_byte) + (" " + _alt("Held out", curve.held_out) if curve.held_out else "")))
    return panels


def _alt(what: str, points: list[tuple[int, float]]) -> str:
    """What a plot shows, for who does not see it."""
    if not points:
        return f"{what}: no points."
    (_, first), (tokens, last) = points[0], points[-1]
    return f"{what}: {first:.3f} at the start, {last:.3f} after {tokens:,} tokens."


def _fertility(view: RunView) -> dict[str, Any] | None:
    """Bars of tokens a word (a character, where words are not spaced), target and English on one scale."""
    measured = view.manifests["extend"].metrics.get("fertility") if "extend" in view.manifests else None
    if not isinstance(measured, dict):
        return None
    unit = "tokens_per_word" if view.language.spaced else "tokens_per_character"
    pairs = {}
    for side, title in (("target", view.language.name), ("english", "English")):
        both = [_number(measured.get(side), when, unit) for when in ("before", "after")]
        if both[0] is not None and both[1] is not None:
            pairs[title] = (both[0], both[1])
    if not pairs:
        return None
    limit = max(value for pair in pairs.values() for value in pair) or 1.0
    label = unit.replace("_", " ")
    panels = [Panel(title, plots.bar_plot(*pair, limit=limit, name=f"fertility-{index}", label=label, digits=2),
                    f"{title}: {pair[0]:.2f} {label} before, {pair[1]:.2f} after.") for index, (title, pair) in enumerate(pairs.items())]
    return {"panels": panels, "unit": label}


def _sizes(view: RunView) -> Panel | None:
    """Share of the sample's tokens that is left with so many sub-words."""
    metrics = view.manifests["extend"].metrics if "extend" in view.manifests else {}
    curve, chosen = metrics.get("curve"), _number(metrics, "new_pieces")
    if not isinstance(curve, list) or len(curve) < 2 or chosen is None:
        return None
    points = [(float(size), 100 * tokens / curve[0][1]) for size, tokens in curve]
    at = min(points, key=lambda point: abs(point[0] - chosen))
    return Panel("Sub-words and tokens", plots.size_plot(points, chosen=chosen, name="sizes", label="% of the tokens without"),
                 f"With {chosen:,.0f} sub-words the sample has {at[1]:.1f} % of the tokens that it has without.")


def _number(values: Any, *path: str) -> float | None:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return float(values) if isinstance(values, (int, float)) and not isinstance(values, bool) else None


def _extension(view: RunView) -> dict[str, Any] | None:
    """What the extension did to the vocabulary and to English."""
    if "extend" not in view.manifests:
        return None
    metrics = view.manifests["extend"].metrics
    identical = metrics.get("english_identical")
    sentences, same = _number(identical, "sentences"), _number(identical, "identical")
    differences = identical.get("differences", []) if isinstance(identical, dict) else []
    code = metrics.get("code_identical")
    return {"new_pieces": _number(metrics, "new_pieces"), "dropped": _number(metrics, "dropped_for_english"),
            "only_parts": _number(metrics, "only_parts"), "code": _number(code, "sentences"), "code_identical": _number(code, "identical"),
            "pre_tokens": _pre_tokens(metrics), "warnings": [str(warning) for warning in metrics.get("warnings", [])],
            "sentences": sentences, "identical": same, "share": same / sentences if sentences and same is not None else None,
            "differences": [_difference(item) for item in differences] if isinstance(differences, list) else []}


def _pre_tokens(metrics: dict[str, Any]) -> float | None:
    """How many times fewer pre-tokens the changed rule makes; None where the rule is the tokenizer's own."""
    found = metrics.get("pre_tokens")
    before, after = _number(found, "before"), _number(found, "after")
    return before / after if isinstance(found, dict) and found.get("changed") and before and after else None


def _difference(item: Any) -> str:
    if isinstance(item, dict):
        return " · ".join(f"{key}: {value}" for key, value in item.items())
    return " · ".join(str(part) for part in item) if isinstance(item, (list, tuple)) else str(item)


def _cost(view: RunView) -> dict[str, Any]:
    """Seconds, tokens, tokens a second and peak memory of each stage, and of the run so far."""
    manifests = list(view.manifests.values())
    seconds = [manifest.seconds for manifest in manifests if manifest.seconds is not None]
    tokens = [manifest.tokens for manifest in manifests if manifest.tokens is not None]
    longest = max(seconds, default=0.0)
    rows = []
    for stage in (name for name in STAGES if not view.only_extension or name in view.manifests):
        manifest = view.manifests.get(stage, Manifest())
        rate = manifest.tokens / manifest.seconds if manifest.tokens and manifest.seconds else None
        width = round(100 * manifest.seconds / longest, 1) if manifest.seconds and longest else 0.0
        rows.append({"stage": stage, "state": view.states[stage], "manifest": manifest, "rate": rate, "width": width})
    return {"rows": rows, "seconds": sum(seconds) if seconds else None, "tokens": sum(tokens) if tokens else None,
            "memory": max((manifest.peak_memory_gib for manifest in manifests if manifest.peak_memory_gib is not None), default=None)}


def _repeat(view: RunView) -> dict[str, Any]:
    """Versions, seeds and digests; a version that changed between stages is shown with every value."""
    versions: dict[str, list[str]] = {}
    for manifest in view.manifests.values():
        for name, version in {"transllm": manifest.transllm, **manifest.versions}.items():
            if version and version not in versions.setdefault(name, []):
                versions[name].append(version)
    seeds = sorted({manifest.seed for manifest in view.manifests.values() if manifest.seed is not None})
    return {"versions": {name: " and ".join(values) for name, values in versions.items() if values}, "seeds": seeds,
            "digests": {stage: manifest.digest for stage, manifest in view.manifests.items() if manifest.digest}}


def show_count(value: float | None) -> str:
    """A count with thousands separated."""
    return NULL if value is None else f"{value:,.0f}"


def show_decimals(value: float | None, digits: int) -> str:
    """A number with fixed digits."""
    return NULL if value is None else f"{value:,.{digits}f}"


def show_duration(seconds: float | None) -> str:
    """Seconds as a person says them: ``0.4 s``, ``42 s``, ``2 min 05 s``, ``1 h 07 min``."""
    if seconds is None:
        return NULL
    if seconds < 10:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\N{NO-BREAK SPACE}s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d}\N{NO-BREAK SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def show_day(moment: str) -> str:
    """A manifest's time stamp to the minute; one that is none is shown as it is."""
    try:
        return datetime.fromisoformat(moment.replace("Z", "+00:00")).strftime("%d %B %Y, %H:%M %Z").lstrip("0")
    except ValueError:
        return moment
