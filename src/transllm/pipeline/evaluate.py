"""evaluate: the same figures for the original model and after every stage, on held-out data, in one run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from transllm.data.language import is_language
from transllm.data.prompts import read_prompts
from transllm.data.sources import read_pairs
from transllm.errors import DataError
from transllm.evaluation.metrics import Metrics, StageMetrics, bleu_tokenizer, share, translation_scores
from transllm.evaluation.scoring import divergence, held_out_texts, text_bits_per_byte
from transllm.files import read_jsonl, write_json
from transllm.generation import Generated, LocalEngine, Sampling
from transllm.model import compute_dtype, default_device, enable_packed, load_folder, load_merged, place
from transllm.model.load import weight_of
from transllm.pipeline.instructions import to_english, to_target
from transllm.pipeline.prepare import read_part
from transllm.pipeline.stage import Context, Result
from transllm.tcot import Guide, Message, parse, what_was_overruled
from transllm.translation import SelfTranslator, TextTranslator
from transllm.translation.translator import Direction

MODELS = ("original", "extend", "pretrain", "bitext", "finetune", "merge")
_SHOWN = 6


def evaluate(context: Context) -> Result:
    """Write ``<model>.json`` for each model as it is measured, then ``samples.json`` and the run's ``metrics.json``."""
    material = material_of(context)
    metrics = Metrics(stages={}, settings=material.settings)
    for name in MODELS:
        file = context.folder / f"{name}.json"
        if not file.exists():
            if name == "merge" and _merged_is_finetuned(context):
                context.progress.say("merge: the weights of finetune, bit for bit; its figures hold")
                write_json(file, json.loads((context.folder / "finetune.json").read_text(encoding="utf-8")))
            else:
                context.progress.say(f"measuring: {name}")
                write_json(file, measure(context, name, material))
        metrics = metrics.with_stage(name, StageMetrics.from_dict(json.loads(file.read_text(encoding="utf-8"))["metrics"]))
    write_json(context.folder / "samples.json", _samples(context.folder, material))
    metrics.write(context.run / "metrics.json")
    return Result(metrics={name: stage.to_dict() for name, stage in metrics.stages.items()})


def load_measured(run: Path, name: str, *, original_size: int, dtype: torch.dtype) -> PreTrainedModel:
    """One of ``MODELS``. The original is the extended model with its rows cut back: they are the same rows, bit for bit."""
    if name == "merge":
        return load_folder(run / "merge", dtype=dtype)[0]
    model, _ = load_merged(run / "extend", None if name in ("original", "extend") else run / name, dtype=dtype)
    if name == "original":
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        old, old_head = weight_of(embedding), weight_of(head)
        rows = nn.Parameter(old[:original_size], requires_grad=False)
        tied = old.data_ptr() == old_head.data_ptr()
        head.weight = rows if tied else nn.Parameter(old_head[:original_size], requires_grad=False)
        embedding.weight = rows
        model.config.get_text_config().vocab_size = original_size
    return model


def _merged_is_finetuned(context: Context) -> bool:
    """Whether the merged folder, read back, is what *finetune* was measured as, so that measuring it again would say the same."""
    dtype = compute_dtype(context.recipe.training.precision, default_device())
    merged, tuned = (load_measured(context.run, name, original_size=context.spans.original_size, dtype=dtype).state_dict()
                     for name in ("merge", "finetune"))
    return merged.keys() == tuned.keys() and all(torch.equal(merged[key], tuned[key]) for key in merged)


@dataclass(frozen=True)
class Material:
    """What all models are measured on."""

    target_texts: list[str]
    english_texts: list[str]
    pairs: list[tuple[str, str]]
    queries: list[str]
    answers: list[tuple[list[int], list[int]]]
    settings: dict[str, Any]


def material_of(context: Context) -> Material:
    recipe = context.recipe
    settings = recipe.evaluate
    pairs, pairs_name = _test_pairs(context)
    queries, queries_name = _queries(context)
    answers = original_answers(context)
    texts = {name: held_out_texts(read_part(context.run, name, "held_out"), settings.documents) for name in ("target", "english")}
    if not answers or not queries:
        raise DataError("There is nothing to hold the original against: " + (
            "all its held-out answers are empty. Raise evaluate.answers." if queries else
            "no held-out sentence is short enough for a query. Name evaluate.queries."))
    return Material(
        texts["target"], texts["english"], pairs, queries, answers,
        {"language": recipe.target.name, "test_pairs": pairs_name, "sentences": len(pairs), "beams": settings.beam_size,
         "queries": len(queries), "query_source": queries_name,
         "documents": {name: len(found) for name, found in texts.items()}, "answers": len(answers)})


def original_answers(context: Context) -> list[tuple[list[int], list[int]]]:
    """The original's own held-out English answers: ids of the prompt, and of the answer with its end if it has one."""
    spans, renderer = context.spans, context.renderer
    held = [row for row in read_jsonl(context.run / "recover" / "conversations.jsonl") if row["held_out"]]
    return [(renderer.prompt([Message("user", row["prompt"])]),
             spans.encode_english(row["answer"]) + ([renderer.end_id] if row["finish"] == "stop" else []))
            for row in held if row["answer"]]


def _test_pairs(context: Context) -> tuple[list[tuple[str, str]], str]:
    """Sentence pairs to translate: the recipe's, else the held-out part of its own."""
    settings, name = context.recipe.evaluate, "held-out part of data.parallel"
    pairs: list[tuple[str, str]] = []
    if settings.test_pairs is not None:
        reading = read_pairs([settings.test_pairs], language=context.recipe.target, folder=context.recipe.folder, cache=context.cache)
        pairs = [(pair.english, pair.target) for pair in reading]
        name = settings.test_pairs.origin if pairs else f"{name} ({settings.test_pairs.origin} is not there)"
    if not pairs:
        rows = sorted(read_part(context.run, "pairs", "held_out"), key=lambda row: row["key"])
        random.Random(0).shuffle(rows)
        pairs = [(row["english"], row["target"]) for row in rows if 20 <= len(row["english"]) <= 300]
    if not pairs:
        raise DataError("There is no held-out pair to translate. Give more pairs, raise data.held_out, or name evaluate.test_pairs.")
    return pairs[: settings.sentences], name


def _queries(context: Context) -> tuple[list[str], str]:
    """User queries in the target language: the recipe's, else target sentences of the held-out pairs that are questions or short."""
    settings = context.recipe.evaluate
    if settings.queries is not None:
        queries = read_prompts(settings.queries, side="target", language=context.recipe.target, folder=context.recipe.folder,
                               cache=context.cache)
        if queries:
            return queries[: settings.query_count], settings.queries.origin
    rows = read_part(context.run, "pairs", "held_out")
    rows.sort(key=lambda row: (not row["target"].rstrip().endswith(("?", "？", "؟")), row["key"]))
    return [row["target"] for row in rows if len(row["target"]) <= 200][: settings.query_count], "held-out sentences, questions first"


def measure(context: Context, name: str, material: Material) -> dict[str, Any]:
    """All figures of one model, and what it wrote."""
    spans, recipe = context.spans, context.recipe
    device = default_device()
    dtype = compute_dtype(recipe.training.precision, device)
    model = place(load_measured(context.run, name, original_size=spans.original_size, dtype=dtype), device)
    own_attention = model.config._attn_implementation
    enable_packed(model)
    is_original, is_tuned = name == "original", name in ("finetune", "merge")
    start_target, start_english = ((context.renderer.end_id,) * 2 if is_original else (spans.markers.target, spans.markers.english))
    with context.progress.task(f"{name}: reading held-out text", 3, "parts") as bar:
        encode = spans.encode_english_batch if is_original else spans.encode_target_batch
        figures: dict[str, Any] = {
            "bits_per_byte_target": text_bits_per_byte(model, material.target_texts, encode=encode, start=start_target)}
        bar.advance(1)
        figures["bits_per_byte_english"] = text_bits_per_byte(
            model, material.english_texts, encode=spans.encode_english_batch, start=start_english)
        bar.advance(1)
        if not is_original:
            original = place(load_measured(context.run, "original", original_size=spans.original_size, dtype=dtype), device)
            enable_packed(original)
            found = divergence(original, model, material.answers, vocabulary=spans.original_size,
                               opening=(spans.markers.response,) if is_tuned else ())
            figures |= {"kl_to_original": found.kl, "same_next_token": found.same}
            del original
        else:
            figures |= {"kl_to_original": 0.0, "same_next_token": 1.0}
        bar.advance(1)
    model.set_attn_implementation(own_attention)
    engine = LocalEngine(model, pad_id=0 if is_original else spans.pad_id, batch_size=recipe.evaluate.batch_size,
                         vocabulary=spans.original_size if is_original else spans.size)
    written: dict[str, Any] = {}
    if name not in ("extend", "pretrain"):  # nothing has been taught yet that translating would show
        written["translations"] = _translate(context, engine, name, material)
        for direction, key in (("en_target", "target"), ("target_en", "english")):
            references = [pair[1] if key == "target" else pair[0] for pair in material.pairs]
            scores = translation_scores(written["translations"][direction], references,
                                        tokenize=bleu_tokenizer(recipe.target) if key == "target" else "13a")
            figures |= {f"{metric}_{direction}": scores[metric] for metric in ("chrf", "chrfpp", "bleu")}
    if is_original or is_tuned:
        written["chains"], more = converse(context, engine, material.queries, original=is_original)
        figures |= more
    return {"metrics": StageMetrics.from_dict(figures).to_dict(), **written}


def _translate(context: Context, engine: LocalEngine, name: str, material: Material) -> dict[str, list[str]]:
    """Both directions: the original asked in its chat template, the others continuing pairs, as chat does when it is asked."""
    language, renderer, settings = context.recipe.target, context.renderer, context.recipe.evaluate
    sides: dict[Direction, list[str]] = {"target": [pair[0] for pair in material.pairs], "english": [pair[1] for pair in material.pairs]}
    # A model that rambles is cut where no translation would still go on: its score would only fall with each word more.
    longest = 16 + 2 * max(len(context.spans.encode_target(text)) for texts in sides.values() for text in texts)
    sentences = SelfTranslator(engine, renderer, longest=longest, repetition_penalty=settings.repetition_penalty, beams=settings.beam_size)
    translator = TextTranslator(sentences, protect=False)  # what the model itself writes is measured
    found: dict[str, list[str]] = {}
    for to, texts in sides.items():
        label = f"{name}: translating to {language.name if to == 'target' else 'English'}"
        if name == "original":  # it rambles as it would without us
            asked = [Message("user", (to_target if to == "target" else to_english)(text, language).content) for text in texts]
            replies = _generate(context, engine, [renderer.prompt([message]) for message in asked],
                                replace(_sampling(context, longest, None), beams=settings.beam_size), label)
            made = [_answer(context, reply.ids) for reply in replies]
        else:
            made = [one.text for one in translator.translate(texts, to=to, progress=context.progress, label=label)]
        found["en_target" if to == "target" else "target_en"] = made
    return found


def _answer(context: Context, ids: Sequence[int]) -> str:
    return context.spans.decode(parse(ids, markers=context.spans.markers, stop_ids=context.renderer.stop_ids).answer).strip()


def _sampling(context: Context, room: int, guide: Guide | None) -> Sampling:
    return Sampling(room, stop_ids=context.renderer.stop_ids, guide=guide, fresh_ids=context.renderer.fresh_ids,
                    repetition_penalty=context.recipe.evaluate.repetition_penalty)


def _generate(context: Context, engine: LocalEngine, prompts: Sequence[Sequence[int]], sampling: Sampling, label: str) -> list[Generated]:
    """Answers to prompts, in order."""
    replies: dict[int, Generated] = {}
    with context.progress.task(label, len(prompts), "answers") as bar:
        for made in engine.generate(prompts, sampling=sampling):
            replies[made.index] = made
            bar.advance(1)
    return [replies[number] for number in range(len(prompts))]


def converse(context: Context, engine: LocalEngine, queries: Sequence[str], *,
              original: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers to unseen target-language queries, as chat would show them; well formed is only what needed no guiding."""
    spans, code, room = context.spans, context.recipe.target.code, context.recipe.evaluate.max_new_tokens
    markers, stop_ids = spans.markers, context.renderer.stop_ids
    prompts = [context.renderer.prompt([Message("user", query, "english" if original else "target")]) for query in queries]
    started = time.monotonic()
    sampling = _sampling(context, room, context.renderer.guide(room, form="any" if original else "chain"))
    replies = _generate(context, engine, prompts, sampling, "answering queries")
    seconds = time.monotonic() - started
    rows, formed, in_target = [], [], []
    for query, made in zip(queries, replies, strict=True):
        chain = parse(made.ids, markers=markers, stop_ids=stop_ids)
        texts = {key: spans.decode(getattr(chain, key)).strip() for key in ("query_en", "answer_en", "answer")}
        problems = filter(None, (*what_was_overruled(made.ids, made.overruled, markers=markers, stop_ids=stop_ids), chain.problem))
        formed.append(chain.well_formed and not made.overruled)
        in_target.append(bool(texts["answer"]) and is_language(texts["answer"], code))
        rows.append({"query": query, **texts, "kind": chain.kind.value, "problem": "" if original else "; ".join(problems),
                     "tokens": len(made.ids)})
    return rows, {"tcot_well_formed": share(formed), "answer_in_target": share(in_target),
                  "tokens_per_answer": sum(len(made.ids) for made in replies) / len(replies), "seconds_per_answer": seconds / len(replies)}


def _samples(folder: Path, material: Material) -> dict[str, Any]:
    """The first few of what each model wrote: chosen before anything was written, good or bad."""
    conversations, translations = [], [{"english": english, "target": target} for english, target in material.pairs[:_SHOWN]]
    for name in MODELS:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for row in found.get("chains", [])[:_SHOWN]:
            turn = {key: row[key] or None for key in ("query", "query_en", "answer_en", "answer")}
            conversations.append({"stage": name, "turns": [turn]})
        for direction, made in found.get("translations", {}).items():
            for row, text in zip(translations, made, strict=False):
                row[f"{name}_{direction}"] = text
    return {"conversations": conversations, "translations": translations}
