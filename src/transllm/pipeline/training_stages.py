"""pretrain, bitext and finetune: the same adapter and the same loop on three kinds of rows."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from transllm import processes
from transllm.evaluation.scoring import document_rows, held_out_texts, text_bits_per_byte
from transllm.files import read_jsonl, write_json
from transllm.model import attach, compute_dtype, default_device, load_to_train, place, shard, sharding_asked
from transllm.pipeline.instructions import to_english, to_target
from transllm.pipeline.prepare import read_part
from transllm.pipeline.recover import recovery_rows
from transllm.pipeline.stage import Context, Result
from transllm.recipe import notices
from transllm.recipe.schema import TrainStage
from transllm.tcot import Message, Renderer, Span
from transllm.training import EncodedRow, Rows, train, write_rows

_WATCHED = 12  # held-out documents scored for the log at the start, the middle and the end
_CHARACTERS_A_TOKEN = 6  # more than any tokenizer makes of a text: enough text for a budget without encoding a whole corpus


def pretrain(context: Context) -> Result:
    """Target-language documents."""
    def rows() -> Iterator[EncodedRow]:
        texts = _enough(read_part(context.run, "target", "train"), context, "text", budget=context.recipe.pretrain.tokens)
        markers = context.spans.markers
        yield from document_rows(texts, encode=context.spans.encode_target_batch, start=markers.target, end=context.renderer.end_id,
                                 longest=context.recipe.pretrain.sequence_length)

    return _train(context, "pretrain", rows, context.recipe.pretrain, before=None)


def bitext(context: Context) -> Result:
    """Sentence pairs in both directions, and English documents as replay."""
    stage = context.recipe.bitext

    def rows() -> Iterator[EncodedRow]:
        pairs = _enough(read_part(context.run, "pairs", "train"), context, "target", budget=stage.tokens)
        shuffle = random.Random(context.recipe.seed)
        made = 0
        for pair in pairs:
            # Each pair serves one direction in a pass: two passes over different text beat one over the same.
            to = "target" if shuffle.random() < stage.to_target else "english"
            own = stage.source_loss is True or (stage.source_loss == "target" and to == "english")
            row = pair_row(context.renderer, pair, to=to, source_loss=own)
            if len(row.ids) <= stage.sequence_length:
                made += len(row.ids)
                yield row
        budget = min(made, stage.tokens) * stage.replay / max(1e-9, 1 - stage.replay)
        texts = [row["text"] for row in _shuffled(read_part(context.run, "english", "train"), context)]
        for row in document_rows(texts, encode=context.spans.encode_english_batch, start=context.spans.markers.english,
                                 end=context.renderer.end_id, longest=stage.sequence_length):
            if budget <= 0:
                break
            budget -= len(row.ids)
            yield row

    return _train(context, "bitext", rows, stage, before="pretrain")


def finetune(context: Context) -> Result:
    """Chains, recovery conversations and translation instructions, in the recipe's shares of rows."""
    stage = context.recipe.finetune

    def rows() -> Iterator[EncodedRow]:
        kinds: dict[str, int] = {}
        chains = read_jsonl(context.run / "bridge" / "chains.jsonl")
        share = 1 - stage.recovery - stage.translation
        recovered = recovery_rows(context.run)
        pairs = _shuffled(read_part(context.run, "pairs", "train"), context)
        made = [("chain", _chain_row(context.renderer, row, after=_earlier(chains, number, stage.history)))
                for number, row in enumerate(chains)]
        made += [("recovery", _recovery_row(context.renderer, row)) for row in recovered[: round(len(chains) * stage.recovery / share)]]
        made += [("translation", row) for row in _instruction_rows(context, pairs, round(len(chains) * stage.translation / share))]
        for kind, row in made:
            kind = kind if len(row.ids) <= stage.sequence_length else "too long"
            kinds[kind] = kinds.get(kind, 0) + 1
            if kind != "too long":
                yield row
        write_json(counted, kinds)  # before the rows are whole: a later sitting finds rows and counts, or neither

    counted = row_folder(context.run, "finetune") / "kinds.json"
    form = {*context.renderer.fresh_ids, context.renderer.end_id}
    result = _train(context, "finetune", rows, stage, before="bitext", heavy=dict.fromkeys(form, stage.form_weight))
    if counted.exists():
        kinds = json.loads(counted.read_text(encoding="utf-8"))
        too_long = kinds.pop("too long", 0)
        result.counts["rows"] = {"read": sum(kinds.values()) + too_long, "kept": sum(kinds.values()), "dropped": {"too long": too_long}}
        result.metrics["rows_by_kind"] = kinds
    return result


def row_folder(run: Path, stage: str) -> Path:
    """Where a training stage keeps its encoded rows."""
    return run / stage / "rows"


def _train(context: Context, name: str, rows: Callable[[], Iterator[EncodedRow]], stage: TrainStage, *, before: str | None,
           heavy: Mapping[int, float] | None = None) -> Result:
    """Build the rows once, load model and adapter, train, write the adapter."""
    training = context.recipe.training
    folder = row_folder(context.run, name)
    device, divide = default_device(), sharding_asked(training)
    dtype = processes.on_main(lambda: compute_dtype(training.precision, device))
    model = load_to_train(context.run / "extend", training=training, device=device, dtype=dtype)
    sizes = {"original_size": context.spans.original_size, "size": context.spans.size}
    torch.manual_seed(context.recipe.seed)  # of LoRA's start: a stage that begins anew after a kill must begin as it did before
    adapted = attach(model if divide else place(model, device), **sizes, training=training, dtype=dtype)
    if before is not None:
        adapted.load(context.run / before)
    if stage.tokens == 0:
        processes.on_main(lambda: adapted.save(context.folder))
        return Result(metrics={"skipped": True})
    if divide:
        shard(adapted, device)
    processes.on_main(lambda: None if (folder / "rows.json").exists() else write_rows(rows(), folder).digest)
    encoded = Rows.open(folder)
    if training.gradient_checkpointing:
        adapted.base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for notice in notices(context.recipe):
        context.progress.say(f"Note: {notice}")
    short_ways = adapted.quicken(training.attention)
    watched = held_out_texts(read_part(context.run, "target", "held_out"), _WATCHED)

    def held_out() -> float:
        return text_bits_per_byte(adapted.base, watched, encode=context.spans.encode_target_batch, start=context.spans.markers.target,
                                  head=adapted.head)

    report = train(adapted, encoded, stage=stage, training=training, folder=context.folder, seed=context.recipe.seed,
                   progress=context.progress, label=name, held_out=held_out, heavy=heavy)

    def keep() -> None:
        adapted.save(context.folder)
        shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)

    processes.on_main(keep)
    return Result(
        counts={"training rows": {"read": len(encoded), "kept": len(encoded), "dropped": {}}}, tokens=report.tokens,
        metrics={"steps": report.steps, "labels": report.labels, "loss": report.loss, "training_seconds": round(report.seconds, 2),
                 "tokens_per_second": round(report.tokens / max(1e-9, report.seconds), 1), "padding": round(report.padding, 4),
                 "epochs": round(report.epochs, 3), "precision": str(dtype).removeprefix("torch."), **short_ways, **report.compiled,
                 "device": str(device), "processes": processes.world(), "sharded": adapted.sharded, "train": training.train,
                 "notices": notices(context.recipe),
                 "trained_parameters": sum(parameter.numel() for parameter in adapted.trainable().values())})


def _enough(rows: Sequence[dict[str, Any]], context: Context, key: str, *, budget: int) -> Any:
    """Shuffled rows, as many as a budget in tokens can need; texts of documents, whole rows of pairs."""
    characters = 0
    taken = []
    for row in _shuffled(rows, context):
        if characters > budget * _CHARACTERS_A_TOKEN:
            break
        characters += len(row[key])
        taken.append(row["text"] if key == "text" else row)
    return taken


def _shuffled(rows: Sequence[dict[str, Any]], context: Context) -> list[dict[str, Any]]:
    order = list(rows)
    random.Random(context.recipe.seed).shuffle(order)
    return order


def pair_row(renderer: Renderer, pair: Mapping[str, str], *, to: str, source_loss: bool) -> EncodedRow:
    """A sentence pair as *bitext* learns it: ``<EN> sentence <XX> sentence END``; for ``to="english"`` the other way round."""
    markers = renderer.spans.markers
    english, target = Span(markers.english, pair["english"], "english"), Span(markers.target, pair["target"], "target")
    spans = [english, target] if to == "target" else [target, english]
    source = renderer.answer(spans[:1], end=False)
    ids = [*source, *renderer.answer(spans[1:])]
    trained = [source_loss] * len(source) + [True] * (len(ids) - len(source))
    trained[0] = False  # nothing stands before it
    trained[len(source)] = False  # which direction is asked for is not to be guessed
    return EncodedRow(ids, trained, len((spans[1].text + (spans[0].text if source_loss else "")).encode()))


def _earlier(chains: Sequence[dict[str, Any]], number: int, share: float) -> Sequence[dict[str, Any]]:
    """The chains whose turns come before this one: one or two for a share of the chains, spread evenly, and none for the others."""
    before = int(number * share)
    if int((number + 1) * share) == before:
        return []
    return chains[max(0, number - 1 - before % 2): number]


def _chain_row(renderer: Renderer, row: dict[str, Any], *, after: Sequence[dict[str, Any]]) -> EncodedRow:
    spans = renderer.chain(query_en=row["query_en"], answer_en=row["answer_en"], answer=row["answer"])
    turns = [message for turn in after for message in (Message("user", turn["query_en"]), Message("assistant", turn["answer_en"]))]
    return _conversation(renderer, [*turns, Message("user", row["query"], "target")], spans)


def _recovery_row(renderer: Renderer, row: dict[str, Any]) -> EncodedRow:
    # An answer that was cut teaches all its words, and no end.
    return _conversation(renderer, [Message("user", row["prompt"])], renderer.recovery(row["answer"]), end=row["finish"] == "stop")


def _instruction_rows(context: Context, pairs: Sequence[Mapping[str, str]], asked: int) -> Iterator[EncodedRow]:
    """Requests to translate. Half of those into English are about questions, as far as there are any.

    Chains are about questions and orders, sentence pairs hardly ever are (2 % in catalogues and scripture), and both answers open with
    ``<EN>``: by the pairs' own mixture a model learns to answer every question in the target language, also one that it is to translate.
    """
    into_target = round(asked * context.recipe.finetune.to_target)
    into_english = asked - into_target
    rest = pairs[into_target:]
    questions = [pair for pair in rest if pair["english"].rstrip().endswith("?")][: into_english // 2]
    others = [pair for pair in rest if not pair["english"].rstrip().endswith("?")][: into_english - len(questions)]
    kinds: list[tuple[Literal["target", "english"], Sequence[Mapping[str, str]]]] = [
        ("target", pairs[:into_target]), ("english", questions), ("english", others)]
    for to, texts in kinds:
        for number, pair in enumerate(texts):  # counted anew for each, so that all words of a request meet all kinds of text
            yield _instruction_row(context, pair, number, to=to)


def _instruction_row(context: Context, pair: Mapping[str, str], number: int, *,
                     to: Literal["target", "english"]) -> EncodedRow:
    renderer, language = context.renderer, context.recipe.target
    message = to_target(pair["english"], language, number) if to == "target" else to_english(pair["target"], language, number)
    return _conversation(renderer, [message], renderer.translation(pair[to], to=to))


def _conversation(renderer: Renderer, messages: Sequence[Message], spans: Sequence[Span], *, end: bool = True) -> EncodedRow:
    ids, trained = renderer.row(messages, spans, end=end)
    return EncodedRow(ids, trained, sum(len(span.text.encode()) for span in spans))
