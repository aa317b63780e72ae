"""What bridge keeps and drops, and what finetune makes of it: shares, direct answers, earlier turns, and the verb that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transllm import load_recipe
from transllm.errors import DataError, RunError
from transllm.files import write_text
from transllm.generation import REPETITION_PENALTY
from transllm.model import load_merged
from transllm.pipeline import inspect_tcot, transform
from transllm.pipeline.bridge import bridge
from transllm.pipeline.mixture import mixture, shuffled
from transllm.pipeline.own_words import with_own_words
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context
from transllm.pipeline.translators import open_sentences
from transllm.progress import Silent
from transllm.tokenizer import SpanTokenizer
from transllm.training import DRAWS

HISTORY = [{"role": "user", "content": "Who painted the bridge?"}, {"role": "assistant", "content": "Nobody knows."}]


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(home: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to *finetune* in which every third conversation is a later turn and the worst are dropped."""
    folder = tmp_path_factory.mktemp("tcot")
    mine = home.at(folder / "home")
    mine.write(pretrain={"tokens": 0}, bitext={"tokens": 500}, bridge={"drop_worst": 0.25, "round_trip": True},
               finetune={"direct": 0.2, "translation": 0.2, "recovery": 0.2, "history": 0.5, "tokens": 300, "sequence_length": 256,
                         "micro_tokens": 256, "batch_tokens": 256, "requests": {"to_target": ["Pon esto en cristiano: {text}"]}})
    recipe = load_recipe(mine.recipe)
    run = transform(recipe, runs=folder / "runs", until="recover").folder
    later = {row["prompt"] for row in _lines(run / "recover" / "conversations.jsonl")[::3]}
    for name in ("conversations", "samples"):
        file = run / "recover" / f"{name}.jsonl"
        _write(file, [row | ({"history": HISTORY, "system": "Be brief."} if row["prompt"] in later else {}) for row in _lines(file)])
    return transform(recipe, runs=folder / "runs", until="finetune").folder


def test_the_worst_are_dropped_and_counted_with_their_scores(made: Path) -> None:
    chains, rejects = _lines(made / "bridge" / "chains.jsonl"), _lines(made / "bridge" / "rejects.jsonl")
    worst = [row for row in rejects if row["reason"] == "among the worst by score"]
    assert len(worst) == round(0.25 * (len(chains) + len(worst))) > 1
    assert max(row["score"] for row in worst) <= min(row["score"] for row in chains)
    assert all(-1 <= row["similarity"] <= 1 and 0 <= row["round_trip"] <= 100 for row in [*chains, *worst])
    assert all("reason" not in row and "back" not in row for row in chains)
    manifest = json.loads((made / "bridge" / "manifest.json").read_text())
    counts = manifest["counts"]["chains"]
    assert counts["kept"] == len(chains) and counts["dropped"]["among the worst by score"] == len(worst)
    assert counts["read"] == len(chains) + len(rejects) and manifest["metrics"]["encoder"] == "self"
    assert set(manifest["metrics"]) >= {"similarity_kept", "similarity_dropped", "round_trip_kept", "round_trip_dropped"}


def test_a_model_that_translates_for_itself_is_kept_from_going_in_circles(made: Path) -> None:
    recipe = load_recipe(made / "recipe.yaml")
    assert open_sentences(Context(recipe, made, made / "bridge", Silent())).identity["penalty"] == REPETITION_PENALTY > 1


def test_the_manifest_tells_asked_and_realised_shares(made: Path) -> None:
    mixed = json.loads((made / "finetune" / "manifest.json").read_text())["metrics"]["mixture"]
    assert {kind: one["asked"] for kind, one in mixed.items()} == {"chain": 0.4, "recovery": 0.2, "translation": 0.2, "direct": 0.2,
                                                                      "pairs": 0.0, "own": 0.0}
    chains = len(_lines(made / "bridge" / "chains.jsonl"))
    assert mixed["chain"]["rows"] == chains and mixed["direct"]["rows"] == mixed["translation"]["rows"] == round(chains / 2)
    for name in ("share_of_rows", "share_of_labels"):
        assert sum(one[name] for one in mixed.values()) == pytest.approx(1, abs=1e-3)
    assert mixed["chain"]["share_of_labels"] > mixed["chain"]["share_of_rows"], "chains are the longest"


def _rows(run: Path, kind: str, **overrides: Any) -> list[tuple[str, str]]:
    recipe = load_recipe(run / "recipe.yaml", overrides=[f"finetune.{key}={value}" for key, value in overrides.items()])
    spans, found = SpanTokenizer.load(run / "extend"), []
    for one in mixture(Context(recipe, run, run / "finetune", Silent()), (kind,)):
        row = one.row
        assert one.kind == kind
        start = row.trained.index(True)
        found.append((spans.extended.decode(row.ids[:start]), spans.extended.decode(row.ids[start:])))
    return found


def test_direct_answers_are_those_of_chains_without_the_chain(made: Path) -> None:
    chains = _lines(made / "bridge" / "chains.jsonl")
    rows = _rows(made, "direct")
    said = {f"<ES>{row['answer'].strip()}<|im_end|>" for row in chains}
    assert rows and all(text.replace("<ES> ", "<ES>") in said for _, text in rows)
    assert all(any(prompt.endswith(f"user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n") for row in chains) for prompt, _ in rows)
    # The first has no chain before it, and a later turn has turns of its own.
    after = [prompt for prompt, _ in _rows(made, "direct", history=1.0)[1:] if "Be brief." not in prompt]
    assert after and all(prompt.count("<|im_start|>user") > 1 for prompt in after)
    assert not any(row["query_en"] in prompt for row in chains for prompt in after), "who answers directly has no English of earlier turns"


def test_a_later_turn_has_its_own_turns_before_it(made: Path) -> None:
    chains = _lines(made / "bridge" / "chains.jsonl")
    own = [row for row in chains if row.get("history")]
    assert own and all(row["history"] == HISTORY and row["system"] == "Be brief." for row in own)
    before = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho painted the bridge?<|im_end|>\n"
              "<|im_start|>assistant\nNobody knows.<|im_end|>\n")
    for kind in ("chain", "direct", "recovery"):
        assert any(prompt.startswith(before) for prompt, _ in _rows(made, kind, recovery=0.3)), kind
    assert sum(prompt.startswith(before) for prompt, _ in _rows(made, "chain")) == len(own)


def test_the_models_own_translations_are_learned_from_its_distribution(made: Path) -> None:
    chains = _lines(made / "bridge" / "chains.jsonl")
    recipe = load_recipe(made / "recipe.yaml", overrides=["finetune.own_words=distribution", "finetune.own=0.2", "finetune.pairs=0.05"])
    context = Context(recipe, made, made / "finetune", Silent())
    mixed = list(mixture(context))
    rows = list(with_own_words(mixed, context))
    assert [(one.kind, list(one.row.ids), one.reading) for one in rows] == [(one.kind, list(one.row.ids), one.reading) for one in mixed]
    assert {one.kind for one in rows if one.row.drawn is not None} == {"chain", "own"} == {one.kind for one in rows if one.reading}
    target = context.spans.markers.target
    for one in rows:
        if one.reading is None:
            continue
        drawn = one.row.drawn
        assert drawn is not None and drawn.tokens.shape == (one.reading.count, DRAWS) and drawn.tokens.max() < context.spans.size
        # The same words in the row as in what the model reads; in a chain all of the last step but its form.
        assert one.row.ids[drawn.at: drawn.at + one.reading.count] == one.reading.ids[-one.reading.count:]
        assert one.row.ids[drawn.at - 1] == one.reading.ids[-one.reading.count - 1] == target and one.reading.ids[0] != target
        assert drawn.at + one.reading.count == len(one.row.ids) - (1 if one.kind == "chain" else 0)
    own = [context.spans.decode(one.row.ids).strip() for one in rows if one.kind == "own"]
    assert len(own) == round(len(chains) * 0.2 / recipe.finetune.shares["chain"]) > 1
    assert own[0].startswith(chains[0]["query_en"].strip()[:20]) and own[1].startswith(chains[1]["answer_en"].strip()[:20])


def test_what_is_drawn_is_what_the_model_says(made: Path) -> None:
    recipe = load_recipe(made / "recipe.yaml", overrides=["finetune.own=0.2"])
    context = Context(recipe, made, made / "finetune", Silent())
    (one, *_) = mixture(context, ("own",))
    times = 250
    drawn = np.stack([again.row.drawn.tokens for again in with_own_words([one] * times, context) if again.row.drawn is not None])
    model, _ = load_merged(made / "extend", made / "bitext", dtype=torch.float32)
    reading = one.reading
    assert reading is not None
    with torch.inference_mode():
        said = model(torch.tensor([list(reading.ids)])).logits[0, -reading.count - 1: -1, : context.spans.size].softmax(-1)
    for place, wanted in enumerate(said):
        tokens = drawn[:, place].ravel()
        likeliest = int(wanted.argmax())
        share, found = float(wanted[likeliest]), float((tokens == likeliest).mean())
        assert abs(found - share) < 5 * (share * (1 - share) / len(tokens)) ** 0.5 + 0.002
        assert -wanted[torch.tensor(tokens).long()].log().mean() == pytest.approx(float(-(wanted * wanted.log()).sum()), rel=0.1, abs=0.02)


def test_pairs_are_rehearsed_in_the_form_of_bitext_and_from_the_end_of_its_order(made: Path) -> None:
    recipe = load_recipe(made / "recipe.yaml", overrides=["finetune.pairs=0.1", "bitext.source_loss=false", "bitext.to_target=1"])
    context = Context(recipe, made, made / "finetune", Silent())
    order = shuffled(read_part(made, "pairs", "train"), context)
    rows = [one.row for one in mixture(context, ("pairs",))]
    chains = len(_lines(made / "bridge" / "chains.jsonl"))
    assert len(rows) == round(chains * 0.1 / recipe.finetune.shares["chain"]) > 0
    for row, pair in zip(rows, reversed(order), strict=False):
        text = context.spans.extended.decode(row.ids)
        start = row.trained.index(True)
        assert text.startswith("<EN>") and pair["english"].strip() in text and text.endswith("<|im_end|>")
        assert row.ids[start - 1] == context.spans.markers.target and all(row.trained[start:])


def test_a_kind_that_cannot_fill_its_share_says_so(made: Path) -> None:
    recipe = load_recipe(made / "recipe.yaml", overrides=["finetune.direct=0.7", "finetune.recovery=0.1", "finetune.translation=0.1"])
    heard = Heard()
    counted = sum(1 for _ in mixture(Context(recipe, made, made / "finetune", heard), ("direct",)))
    assert counted == len(_lines(made / "bridge" / "chains.jsonl"))
    (note,) = heard.said
    assert "finetune.direct asks for" in note and f"there are only {counted}" in note


def test_a_bridge_that_keeps_nothing_names_filter_and_setting(made: Path, tmp_path: Path) -> None:
    for override, words in (("bridge.min_length_ratio=9999", "'length of query' dropped .* Widen bridge.min_length_ratio"),
                            ("bridge.check_language=true", "'language of (query|answer)' dropped .* bridge.check_language")):
        recipe = load_recipe(made / "recipe.yaml", overrides=[override])
        folder = tmp_path / override.partition("=")[0]
        folder.mkdir()
        rows = _lines(made / "bridge" / "translated.jsonl")
        _write(folder / "translated.jsonl", [row | {"query": "xyz", "answer": "xyz"} for row in rows])
        with pytest.raises(DataError, match=words):
            bridge(Context(recipe, made, folder, Silent()))


def test_inspect_shows_parts_masks_and_rejects(made: Path, cli: Any) -> None:
    shown = inspect_tcot(made, count=2)
    assert [one.kind for one in shown] == [kind for kind in ("chain", "recovery", "translation", "direct") for _ in range(2)]
    first = _lines(made / "bridge" / "chains.jsonl")[0]
    assert shown[0].parts["answer"] == first["answer"].strip() and shown[0].parts["query_en"] == first["query_en"].strip()
    assert shown[0].scores["score"] == first["score"] and shown[0].pieces[-1] == ("<|im_end|>", True) and not shown[0].pieces[0][1]
    assert "query_en" not in shown[-1].parts, "a direct answer has no English"
    done = cli("inspect", "tcot", made, "--kind", "direct", "--count", "1")
    assert done.code == 0 and done.out.startswith("direct") and "⟦<ES>" in done.out and "<RESPONSE>" not in done.out
    done = cli("inspect", "tcot", made, "--rejects", "--kind", "worst", "--count", "1")
    assert done.code == 0 and done.out.count("among the worst by score") == 1 and "similarity " in done.out and "round_trip " in done.out
    with pytest.raises(RunError, match="no kind 'chains'"):
        inspect_tcot(made, kind="chains")
    refused = cli("inspect", "tcot", made.parent)
    assert refused.code == 1 and "Traceback" not in refused.err
