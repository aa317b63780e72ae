"""Talk to a transformed model over many turns: answers are guided along the chain, history is kept in English."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transllm.data.language import is_language
from transllm.data.requests import Asked, asks_for_translation, translation_asked
from transllm.errors import RunError
from transllm.generation import REPETITION_PENALTY, Engine, Generated, LocalEngine, Sampling, TextStream
from transllm.model import compute_dtype, default_device, load_folder, place
from transllm.progress import Silent
from transllm.tcot import Form, Kind, Message, Renderer, parse, what_was_overruled
from transllm.tokenizer import SpanTokenizer
from transllm.translation import SelfTranslator, TextTranslator

Mode = Literal["merged", "direct"]
"""``merged``: by a chain of English steps, as in the paper. ``direct``: at once; for models that learned it (``finetune.direct``)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        query: what the user said.
        english: whether that was English.
        query_en: the model's English version of it; the query itself if it was English.
        answer_en: the answer in English.
        answer: the answer that is shown.
        kind: what the model wrote.
        problems: where the chain had to be guided, and what is wrong with it all the same.
        tokens: tokens written.
        seconds: time taken.
    """

    query: str
    english: bool
    query_en: str
    answer_en: str
    answer: str
    kind: str
    problems: tuple[str, ...]
    tokens: int
    seconds: float


class Chat:
    """A conversation. Earlier turns are kept in English, the new query is in the target language (arXiv 2405.13923).

    So the model reads a history such as the chat model was aligned on, and single-turn training data suffice.

    Args:
        engine: the merged model.
        spans: its tokenizers.
        max_new_tokens: of a whole chain.
        context: tokens that the model can read; the oldest turns are left out when they no longer fit.
        repetition_penalty: for words that a step of the chain has said; 1 is none.
        mode: how queries in the target language are answered. The first marker of an answer is forced, so the prompt stays as it is.
        beams: beginnings of what is said in the target language to follow side by side. More than one say it better and show it when it is
            done; 1 shows each word as it comes.
    """

    def __init__(self, engine: Engine, spans: SpanTokenizer, *, max_new_tokens: int = 1024, context: int = 2048,
                 repetition_penalty: float = REPETITION_PENALTY, mode: Mode = "merged", beams: int = 1) -> None:
        self._engine, self._spans, self._renderer = engine, spans, Renderer(spans)
        self._max_new_tokens, self._context, self._repetition_penalty = max_new_tokens, context, repetition_penalty
        self._beams = beams
        self._form: Form = "chain" if mode == "merged" else "direct"
        self.history: list[Reply] = []

    def reset(self) -> None:
        """Forget the conversation."""
        self.history = []

    def send(self, text: str, *, stream: Callable[[str], None] | None = None) -> Reply:
        """Say something and get the answer.

        Args:
            text: in the target language or in English.
            stream: called with each new part of the shown answer as it is written.
        """
        started = time.monotonic()
        english = is_language(text, "en", threshold=0.8)
        asked = translation_asked(text, self._spans.language)
        if asked is not None:
            reply = self._translation(text, asked, english=english, started=started)
            if stream is not None:
                stream(reply.answer)
            self.history.append(reply)
            return reply
        markers, stop_ids = self._spans.markers, self._renderer.stop_ids
        guide = self._renderer.guide(self._max_new_tokens, form=self._form_of(text, english=english))
        sampling = Sampling(self._max_new_tokens, stop_ids=stop_ids, guide=guide, fresh_ids=self._renderer.fresh_ids,
                            repetition_penalty=self._repetition_penalty)
        viewer = _Viewer(self._spans, stream)
        made = self._answer(self._prompt(text, english=english), sampling, viewer.add)
        chain = parse(made.ids, markers=markers, stop_ids=stop_ids)
        viewer.close()
        if not viewer.shown and stream is not None:  # an answer without a marker: only its end tells that it is one
            stream(self._spans.decode(chain.answer).strip())
        problems = filter(None, (*what_was_overruled(made.ids, made.overruled, markers=markers, stop_ids=stop_ids), chain.problem))
        decode = self._spans.decode
        query_en = decode(chain.query_en).strip() or text
        answer = decode(chain.answer).strip()
        reply = Reply(text, english, query_en, decode(chain.answer_en).strip() or answer, answer, chain.kind.value, tuple(problems),
                      len(made.ids), time.monotonic() - started)
        self.history.append(reply)
        return reply

    def _answer(self, prompt: Sequence[int], sampling: Sampling, told: Callable[[int], None]) -> Generated:
        """An answer to a prompt: word by word and guided; with beams, only up to where it speaks the target language.

        A marker ends what the beams say, where the guide would have written an end.
        """
        def generate(prompt: Sequence[int], sampling: Sampling) -> Generated:
            (made,) = self._engine.generate([prompt], sampling=sampling, on_token=lambda _, token: told(token))
            return made

        if self._beams == 1:
            return generate(prompt, sampling)
        target = self._spans.markers.target
        steps = generate(prompt, replace(sampling, stop_ids=sampling.stop_ids | {target}))
        room = sampling.max_new_tokens - len(steps.ids)
        if steps.ids[-1] != target or room < 1:
            return steps
        said = generate([*prompt, *steps.ids], replace(sampling, max_new_tokens=room, guide=None, beams=self._beams,
                                                       stop_ids=sampling.stop_ids | sampling.fresh_ids))
        ids, overruled = [*steps.ids, *said.ids], dict(steps.overruled)
        if ids[-1] in sampling.fresh_ids:
            overruled[len(ids) - 1] = ids[-1]
            ids[-1] = self._renderer.end_id
        return replace(said, ids=ids, overruled=overruled)

    def _translation(self, query: str, asked: Asked, *, english: bool, started: float) -> Reply:
        """Who asks for a translation in known words gets it from the model as a translator of texts.

        In the form of *bitext*, that is, sentence by sentence, with code, links and numbers kept: that form was learned on many more pairs
        than requests in the chat template were, and says it better (docs/results).
        """
        translator = TextTranslator(SelfTranslator(self._engine, self._renderer, longest=self._max_new_tokens,
                                                   repetition_penalty=self._repetition_penalty, beams=self._beams))
        (made,) = translator.translate([asked.text], to=asked.to, progress=Silent(), label="")
        problems = (*(["a sentence is cut"] if made.cut else []), *(f"lost: {piece}" for piece in made.lost))
        kind, encode = ((Kind.TARGET, self._spans.encode_target) if asked.to == "target" else (Kind.ENGLISH, self._spans.encode_english))
        return Reply(query, english, query, made.text, made.text, kind.value, problems, len(encode(made.text)), time.monotonic() - started)

    def _form_of(self, text: str, *, english: bool) -> Form:
        """Who may have asked for a translation gets what the model takes it for."""
        return "any" if english or asks_for_translation(text, self._spans.language) else self._form

    def _prompt(self, text: str, *, english: bool) -> list[int]:
        """Ids of the conversation; the oldest turns go when there is no room for an answer of the usual length."""
        turns = list(self.history)
        while True:
            messages = [message for turn in turns for message in _turn(turn)]
            ids = self._renderer.prompt([*messages, Message("user", text, "english" if english else "target")])
            if not turns or len(ids) + self._max_new_tokens <= self._context:
                return ids
            turns.pop(0)


def _turn(reply: Reply) -> tuple[Message, Message]:
    """An earlier turn as the model reads it: in English, or as it was said where there is no English of it."""
    if reply.kind in (Kind.TARGET.value, Kind.ENGLISH.value):
        said = Message("user", reply.query, "english" if reply.english else "target")
        return said, Message("assistant", reply.answer, "target" if reply.kind == Kind.TARGET.value else "english")
    return Message("user", reply.query_en), Message("assistant", reply.answer_en)


class _Viewer:
    """Streams the part of an answer that is shown: after the target marker, or all of an English answer."""

    def __init__(self, spans: SpanTokenizer, write: Callable[[str], None] | None) -> None:
        self._spans, self._write = spans, write
        self._stream: TextStream | None = None
        self._markers: list[int] = []
        self.shown = False

    def add(self, token: int) -> None:
        markers = self._spans.markers
        if token in (markers.english, markers.response, markers.target):
            self._markers.append(token)
            opens = token == markers.target or self._markers == [markers.response]
            self._stream = TextStream(self._spans.decode, self._write) if opens and self._write is not None else None
            self.shown = self.shown or opens
        elif self._stream is not None:
            self._stream.add(token)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def load_chat(folder: Path | str, *, max_new_tokens: int = 1024, repetition_penalty: float = REPETITION_PENALTY,
              mode: Mode = "merged", beams: int = 1) -> Chat:
    """Open a conversation with a transformed model.

    Args:
        folder: a run folder, or the folder of a merged model.
        max_new_tokens: of a whole chain.
        repetition_penalty: for words that a step of the chain has said; 1 is none.
        mode: "merged", by a chain; "direct", at once, where the model has learned it.
        beams: beginnings of what is said in the target language to follow side by side.

    Raises:
        RunError: there is no merged model, or it has not learned to answer directly.
    """
    folder = Path(folder)
    merged = folder / "merge" if (folder / "merge").is_dir() else folder
    if not (merged / "vocabulary.json").is_file() or not (merged / "config.json").is_file():
        raise RunError(f"There is no transformed model in '{folder}'. "
                       "Give a run folder whose 'merge' stage is done, or a merged model's folder.")
    if mode == "direct" and not _learned_direct(merged):
        raise RunError(f"The model in '{folder}' has not learned to answer directly: finetune.direct of its recipe is 0. Give that a "
                       "share, such as 0.15, and run it again, or chat by chains: --mode merged.")
    device = default_device()
    model, _ = load_folder(merged)
    place(model, device, compute_dtype("auto", device))
    spans = SpanTokenizer.load(merged)
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))
    return Chat(LocalEngine(model, pad_id=spans.pad_id, vocabulary=spans.size), spans, max_new_tokens=max_new_tokens, context=context,
                repetition_penalty=repetition_penalty, mode=mode, beams=beams)


def _learned_direct(merged: Path) -> bool:
    """Whether *finetune* beside the merged model had direct rows; a merged model without its run is believed."""
    try:
        manifest = json.loads((merged.parent / "finetune" / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    return bool(manifest["metrics"].get("mixture", {}).get("direct", {}).get("rows"))
