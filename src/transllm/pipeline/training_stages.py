"""pretrain, bitext and finetune: the same adapter and the same loop on three kinds of rows."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transllm import processes
from transllm.data import Counts, Pair
from transllm.data.coverage import by_coverage, words_of
from transllm.data.sources import read_words
from transllm.data.split import exclude, held_texts
from transllm.evaluation.scoring import document_rows, held_out_texts, text_bits_per_byte
from transllm.files import write_json
from transllm.model import attach, compute_dtype, default_device, load_to_train, place, shard, sharing_asked
from transllm.pipeline.memory import give_back_memory
from transllm.pipeline.mixture import mixture, shuffled
from transllm.pipeline.own_words import with_own_words
from transllm.pipeline.pair_rows import pair_rows
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context, Result
from transllm.recipe import notices
from transllm.recipe.schema import TrainStage
from transllm.training import EncodedRow, Recovery, Rows, train, write_rows

_WATCHED = 12  # held-out documents scored for the log at the start, the middle and the end
_CHOICE = 20  # times the budget: how much text pairs are chosen from
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
    """Words, sentence pairs in both directions, and English documents as replay."""
    stage = context.recipe.bitext
    words, sources = processes.on_main(lambda: _lexicon(context))

    def rows() -> Iterator[EncodedRow]:
        made, room = 0, stage.tokens * (1 - stage.replay)
        for row in pair_rows(context, itertools.chain(words, _chosen_pairs(context))):
            if made >= room:
                break
            if len(row.ids) <= stage.sequence_length:
                made += len(row.ids)
                yield row
        budget = stage.replay * (stage.tokens if made >= room else made / (1 - stage.replay))
        texts = [row["text"] for row in shuffled(read_part(context.run, "english", "train"), context)]
        for row in document_rows(texts, encode=context.spans.encode_english_batch, start=context.spans.markers.english,
                                 end=context.renderer.end_id, longest=stage.sequence_length):
            if budget <= 0:
                break
            budget -= len(row.ids)
            yield row

    result = _train(context, "bitext", rows, stage, before="pretrain")
    result.sources += sources
    return result


def _lexicon(context: Context) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Pairs of words that are no held-out text, and what became of each source."""
    recipe = context.recipe
    if not recipe.bitext.lexicon or not recipe.bitext.tokens:
        return [], []
    reading = read_words(recipe.bitext.lexicon, language=recipe.target, folder=recipe.folder, cache=context.cache)
    held = held_texts(Pair(**row) for row in read_part(context.run, "pairs", "held_out"))
    words = [{"english": pair.english, "target": pair.target} for pair in exclude(reading, held, counts=Counts())]
    return words, [{**report.as_dict(), "used_as": "lexicon"} for report in reading.reports]


def _chosen_pairs(context: Context) -> Iterator[dict[str, str]]:
    """Pairs in the order in which they are to be learned, more than the budget needs."""
    stage, pairs = context.recipe.bitext, read_part(context.run, "pairs", "train")
    if stage.choose == "random":
        yield from _enough(pairs, context, "target", budget=stage.tokens)
        return
    pool = _enough(pairs, context, "target", budget=_CHOICE * stage.tokens)
    words = sorted({word for pair in pool for word in words_of(pair["english"])})
    # What the chat model's tokenizer has a token for is common in what the model has read.
    as_tokens = [context.spans.encode_english_batch(before + word for word in words) for before in ("", " ")]
    common = {word for word, *ids in zip(words, *as_tokens, strict=True) if min(map(len, ids)) == 1}
    for number in by_coverage(pool, common):
        yield pool[number]


def finetune(context: Context) -> Result:
    """Chains, recovery conversations, translation instructions, direct answers and sentence pairs, real ones and the model's own, in the
    recipe's shares of rows."""
    stage = context.recipe.finetune

    def rows() -> Iterator[EncodedRow]:
        kinds: dict[str, list[int]] = {}
        for mixed in with_own_words(mixture(context), context):
            row = mixed.row
            kind = mixed.kind if len(row.ids) <= stage.sequence_length else "too long"
            count, labels = kinds.get(kind, [0, 0])
            kinds[kind] = [count + 1, labels + sum(row.trained)]
            if kind != "too long":
                yield row
        write_json(counted, kinds)  # before the rows are whole: a later sitting finds rows and counts, or neither

    counted = row_folder(context.run, "finetune") / "kinds.json"
    form = {*context.renderer.fresh_ids, context.renderer.end_id}
    recover = context.recipe.recover
    result = _train(context, "finetune", rows, stage, before="bitext", heavy=dict.fromkeys(form, stage.form_weight),
                    soft_weight=stage.own_weight, recovery=Recovery(recover.by, recover.logits, context.renderer.stop_ids))
    if counted.exists():
        kinds = json.loads(counted.read_text(encoding="utf-8"))
        too_long, _ = kinds.pop("too long", (0, 0))
        number, learned = (sum(one[place] for one in kinds.values()) for place in (0, 1))
        result.counts["rows"] = {"read": number + too_long, "kept": number, "dropped": {"too long": too_long}}
        result.metrics["mixture"] = {
            kind: {"asked": round(share, 4), "rows": count, "share_of_rows": round(count / max(1, number), 4), "labels": labels,
                   "share_of_labels": round(labels / max(1, learned), 4)}
            for kind, share in stage.shares.items() for count, labels in [kinds.get(kind, (0, 0))]}
    return result


def row_folder(run: Path, stage: str) -> Path:
    """Where a training stage keeps its encoded rows."""
    return run / stage / "rows"


def _train(context: Context, name: str, rows: Callable[[], Iterator[EncodedRow]], stage: TrainStage, *, before: str | None,
           heavy: Mapping[int, float] | None = None, soft_weight: float = 1.0, recovery: Recovery = Recovery()) -> Result:  # noqa: B008  # frozen
    """Build the rows once, load model and adapter, train, write the adapter."""
    training = context.recipe.training
    folder = row_folder(context.run, name)
    if stage.tokens:  # before there is a model to train: rows can need another one
        processes.on_main(lambda: None if Rows.are_in(folder) else write_rows(rows(), folder).digest)
        give_back_memory()
    device, sharing = default_device(), sharing_asked(training)
    dtype = processes.on_main(lambda: compute_dtype(training.precision, device))
    model = load_to_train(context.run / "extend", training=training, device=device, dtype=dtype)
    sizes = {"original_size": context.spans.original_size, "size": context.spans.size}
    torch.manual_seed(context.recipe.seed)  # of LoRA's start: a stage that begins anew after a kill must begin as it did before
    adapted = attach(model if sharing else place(model, device), **sizes, training=training, dtype=dtype)
    if before is not None:
        adapted.load(context.run / before)
    if stage.tokens == 0:
        adapted.save(context.folder)
        return Result(metrics={"skipped": True})
    if sharing:
        shard(adapted, device, sharing)
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
                   progress=context.progress, label=name, held_out=held_out, heavy=heavy, soft_weight=soft_weight, recovery=recovery)
    adapted.save(context.folder)
    processes.on_main(lambda: shutil.rmtree(context.folder / "checkpoints", ignore_errors=True))
    return Result(
        counts={"training rows": {"read": len(encoded), "kept": len(encoded), "dropped": {}}}, tokens=report.tokens,
        metrics={"steps": report.steps, "labels": report.labels, "loss": report.loss, "training_seconds": round(report.seconds, 2),
                 "tokens_per_second": round(report.tokens / max(1e-9, report.seconds), 1), "padding": round(report.padding, 4),
                 "epochs": round(report.epochs, 3), "precision": str(dtype).removeprefix("torch."), **short_ways,
                 **({"compiled": report.compiled} if report.compiled else {}),
                 "device": str(device), "processes": processes.world(), "sharded": adapted.sharded, "train": training.train,
                 "notices": notices(context.recipe),
                 "trained_parameters": sum(parameter.numel() for parameter in adapted.trainable().values())})


def _enough(rows: Sequence[dict[str, Any]], context: Context, key: str, *, budget: int) -> Any:
    """Shuffled rows, as many as a budget in tokens can need; texts of documents, whole rows of pairs."""
    characters = 0
    taken = []
    for row in shuffled(rows, context):
        if characters > budget * _CHARACTERS_A_TOKEN:
            break
        characters += len(row[key])
        taken.append(row["text"] if key == "text" else row)
    return taken
