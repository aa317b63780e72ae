"""Talk to a transformed model over many turns: answers are guided along the chain, history is kept in English."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transllm.data.language import is_language
from transllm.data.requests import Asked, asks_for_translation, translation_asked
from transllm.errors import RunError
from transllm.generation import REPETITION_PENALTY, Engine, Generated, LocalEngine, Sampling, TextStream
from transllm.model import Adapted, attach, compute_dtype, default_device, load_folder, load_to_train, place
from transllm.progress import Silent
from transllm.recipe import load_recipe
from transllm.tcot import Form, Kind, Message, Renderer, parse, what_was_overruled
from transllm.tokenizer import SpanTokenizer
from transllm.translation import Direction, SelfTranslator, TextTranslator, Translation

Mode = Literal["merged", "switched", "direct"]
"""``merged``: by a chain of English steps, as in the paper. ``switched``: the query is translated, the *original* chat model answers in
English, and its answer is translated. ``direct``: at once; for models that learned it (``finetune.direct``)."""


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
        engine: the transformed model.
        spans: its tokenizers.
        max_new_tokens: of a whole chain.
        context: tokens that the model can read; the oldest turns are left out when they no longer fit.
        repetition_penalty: for words that a step of the chain has said; 1 is none.
        mode: how queries in the target language are answered. The first marker of an answer is forced, so the prompt stays as it is.
        beams: beginnings of what is said in the target language to follow side by side. More than one say it better and show it when it is
            done; 1 shows each word as it comes.
        original: the original chat model, which answers where the mode is "switched".
    """

    def __init__(self, engine: Engine, spans: SpanTokenizer, *, max_new_tokens: int = 1024, context: int = 2048,
                 repetition_penalty: float = REPETITION_PENALTY, mode: Mode = "merged", beams: int = 1,
                 original: Engine | None = None) -> None:
        if (mode == "switched") != (original is not None):
            raise ValueError("An original chat model is for the mode 'switched', which needs one.")
        self._engine, self._spans, self._renderer = engine, spans, Renderer(spans)
        self._max_new_tokens, self._context, self._repetition_penalty = max_new_tokens, context, repetition_penalty
        self._beams = beams
        self._original = original
        self._form: Form = "direct" if mode == "direct" else "chain"
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
        elif self._original is not None and not asks_for_translation(text, self._spans.language):
            reply = self._switched(text, self._original, english=english, started=started)
        else:
            reply = self._in_one_pass(text, english=english, started=started, stream=stream)
            stream = None
        if stream is not None:
            stream(reply.answer)
        self.history.append(reply)
        return reply

    def _in_one_pass(self, text: str, *, english: bool, started: float, stream: Callable[[str], None] | None) -> Reply:
        """The transformed model writes the whole answer: a chain, a direct answer, an answer in English."""
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
        return Reply(text, english, query_en, decode(chain.answer_en).strip() or answer, answer, chain.kind.value, tuple(problems),
                     len(made.ids), time.monotonic() - started)

    def _switched(self, query: str, original: Engine, *, english: bool, started: float) -> Reply:
        """The original chat model answers, as it would answer who wrote to it in English; the transformed one only translates.

        The whole history is in English, and decoding is that of all answers: with a repetition penalty of 1 the answer is what the
        original says greedily, word for word.
        """
        asked = Translation(query, cut=False) if english else self._translated(query, to="english")
        query_en = asked.text or query
        prompt = self._prompt(query_en, english=True, all_english=True)
        sampling = Sampling(self._max_new_tokens, stop_ids=self._renderer.stop_ids, repetition_penalty=self._repetition_penalty)
        (made,) = original.generate([prompt], sampling=sampling)
        answer_en = self._spans.decode(made.ids[:-1] if made.finish == "stop" else made.ids).strip()
        said = Translation(answer_en, cut=False) if english else self._translated(answer_en, to="target")
        cut = {"the query in English": asked.cut, "the answer in English": made.finish == "length", "the answer": said.cut}
        problems = [f"{what} is cut" for what, is_cut in cut.items() if is_cut]
        problems += [f"lost: {piece}" for piece in (*asked.lost, *said.lost)]
        translated = 0 if english else len(self._spans.encode_english(asked.text)) + len(self._spans.encode_target(said.text))
        return Reply(query, english, query_en, answer_en, said.text, (Kind.ENGLISH if english else Kind.CHAIN).value, tuple(problems),
                     len(made.ids) + translated, time.monotonic() - started)

    def _translated(self, text: str, *, to: Direction) -> Translation:
        """Sentence by sentence, with code, links and numbers kept, in the form of *bitext*: that form was learned on many more pairs than
        requests in the chat template were, and says it better (docs/results)."""
        translator = TextTranslator(SelfTranslator(self._engine, self._renderer, longest=self._max_new_tokens,
                                                   repetition_penalty=self._repetition_penalty, beams=self._beams))
        (made,) = translator.translate([text], to=to, progress=Silent(), label="")
        return made

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
        """Who asks for a translation in known words gets it from the model as a translator of texts."""
        made = self._translated(asked.text, to=asked.to)
        problems = (*(["a sentence is cut"] if made.cut else []), *(f"lost: {piece}" for piece in made.lost))
        kind, encode = ((Kind.TARGET, self._spans.encode_target) if asked.to == "target" else (Kind.ENGLISH, self._spans.encode_english))
        return Reply(query, english, query, made.text, made.text, kind.value, problems, len(encode(made.text)), time.monotonic() - started)

    def _form_of(self, text: str, *, english: bool) -> Form:
        """Who may have asked for a translation gets what the model takes it for."""
        return "any" if english or asks_for_translation(text, self._spans.language) else self._form

    def _prompt(self, text: str, *, english: bool, all_english: bool = False) -> list[int]:
        """Ids of the conversation; the oldest turns go when there is no room for an answer of the usual length.

        Args:
            all_english: in the original's vocabulary throughout, for the original.
        """
        turns = list(self.history)
        while True:
            messages = [message for turn in turns for message in _turn(turn)]
            messages.append(Message("user", text, "english" if english else "target"))
            ids = self._renderer.prompt([replace(message, language="english") for message in messages] if all_english else messages)
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
        mode: "merged", by a chain; "switched", by the original chat model and two translations, for a run folder; "direct", at once, where
            the model has learned it.
        beams: beginnings of what is said in the target language to follow side by side.

    Raises:
        RunError: there is no merged model, it has not learned to answer directly, or the original is not inside it.
    """
    folder = Path(folder)
    merged = folder / "merge" if (folder / "merge").is_dir() else folder
    if not (merged / "vocabulary.json").is_file() or not (merged / "config.json").is_file():
        raise RunError(f"There is no transformed model in '{folder}'. "
                       "Give a run folder whose 'merge' stage is done, or a merged model's folder.")
    if mode == "direct" and not _learned_direct(merged):
        raise RunError(f"The model in '{folder}' has not learned to answer directly: finetune.direct of its recipe is 0. Give that a "
                       "share, such as 0.15, and run it again, or chat by chains: --mode merged.")
    spans, device, original = SpanTokenizer.load(merged), default_device(), None
    if mode == "switched":
        adapted = _with_adapter(folder, spans)
        model = adapted.base
        original = _Original(adapted, LocalEngine(model, pad_id=spans.pad_id, vocabulary=spans.original_size))
    else:
        model, _ = load_folder(merged)
        place(model, device, compute_dtype("auto", device))
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))
    return Chat(LocalEngine(model, pad_id=spans.pad_id, vocabulary=spans.size), spans, max_new_tokens=max_new_tokens, context=context,
                repetition_penalty=repetition_penalty, mode=mode, beams=beams, original=original)


class _Original:
    """The original chat model inside the transformed one, as an engine: no second model in memory."""

    def __init__(self, adapted: Adapted, engine: LocalEngine) -> None:
        self._adapted, self._engine = adapted, engine

    def generate(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, limits: Sequence[int] | None = None,
                 on_token: Callable[[int, int], None] | None = None) -> Iterator[Generated]:
        """See ``Engine.generate``. The adapter is off until the last answer is taken."""
        with self._adapted.original():
            yield from self._engine.generate(prompts, sampling=sampling, limits=limits, on_token=on_token)


def _with_adapter(run: Path, spans: SpanTokenizer) -> Adapted:
    """The model that *finetune* left, with an adapter that can be taken off.

    Raises:
        RunError: it is not there, or the original is not inside it.
    """
    for needed in ("recipe.yaml", "extend/config.json", "finetune/manifest.json"):
        if not (run / needed).is_file():
            raise RunError(f"The mode 'switched' takes the adapter off and on, for which '{run / needed}' is missing. "
                           "Give the folder of the whole run, or chat by chains: --mode merged.")
    training, device = load_recipe(run / "recipe.yaml").training, default_device()
    if training.trains_old_rows:
        raise RunError(f"Rows or weights of the original chat model were trained in '{run}', so it is not inside any more. Chat by chains: "
                       "--mode merged.")
    dtype = compute_dtype("auto", device)
    model = place(load_to_train(run / "extend", training=training, device=device, dtype=dtype), device)
    adapted = attach(model, original_size=spans.original_size, size=spans.size, training=training, dtype=dtype)
    adapted.load(run / "finetune")
    adapted.peft.eval()
    return adapted


def _learned_direct(merged: Path) -> bool:
    """Whether *finetune* beside the merged model had direct rows; a merged model without its run is believed."""
    try:
        manifest = json.loads((merged.parent / "finetune" / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    return bool(manifest["metrics"].get("mixture", {}).get("direct", {}).get("rows"))
