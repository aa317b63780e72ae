"""A chat follows the chain: it shows the target text, keeps English history and guides what strays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from transllm.chat import Chat, Mode, load_chat
from transllm.errors import RunError
from transllm.generation import Generated, Sampling
from transllm.tcot import Kind, Message, Renderer, Span
from transllm.tokenizer import SpanTokenizer

QUERY = "¿Dónde está la biblioteca de la ciudad, por favor?"
ENGLISH = "Where is the library of the city, please? I cannot find it."


class Scripted:
    """An engine that chooses what it is told to, within the room and under the guide that it is given."""

    def __init__(self, answers: Sequence[list[int]]) -> None:
        self._answers = list(answers)
        self.prompts: list[list[int]] = []
        self.rooms: list[int] = []
        self.beams: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, limits: Sequence[int] | None = None,
                 on_token: Callable[[int, int], None] | None = None) -> Iterator[Generated]:
        for number, prompt in enumerate(prompts):
            yield self._answer(number, prompt, sampling, on_token)

    def _answer(self, number: int, prompt: Sequence[int], sampling: Sampling, on_token: Callable[[int, int], None] | None) -> Generated:
        self.prompts.append(list(prompt))
        self.rooms.append(sampling.max_new_tokens)
        self.beams.append(sampling.beams)
        ids: list[int] = []
        overruled = {}
        for place, token in enumerate(self._answers.pop(0)[: sampling.max_new_tokens]):
            written = sampling.guide(ids, token) if sampling.guide is not None else token
            if written != token:
                overruled[place] = token
            ids.append(written)
            if on_token is not None:
                on_token(number, written)
            if written in sampling.stop_ids:
                break
        return Generated(number, ids, "stop" if ids[-1] in sampling.stop_ids else "length", overruled)


@pytest.fixture
def renderer(tiny_spans: SpanTokenizer) -> Renderer:
    return Renderer(tiny_spans)


def _chain(renderer: Renderer, number: int = 1) -> list[int]:
    return renderer.answer(renderer.chain(query_en=f"Where is it {number}?", answer_en=f"In the city {number}.",
                                          answer=f"En la ciudad {number}, señor."))


def test_a_chain(renderer: Renderer) -> None:
    engine, parts = Scripted([_chain(renderer)]), list[str]()
    chat = Chat(engine, renderer.spans)
    reply = chat.send(QUERY, stream=parts.append)
    assert (reply.query, reply.query_en) == (QUERY, "Where is it 1?")
    assert (reply.answer_en, reply.answer) == ("In the city 1.", "En la ciudad 1, señor.")
    assert "".join(parts) == reply.answer and len(parts) > 3, "only the target text is shown, as it comes"
    assert (reply.kind, reply.problems, reply.tokens) == (Kind.CHAIN.value, (), len(_chain(renderer)))
    assert engine.prompts == [renderer.prompt([Message("user", QUERY, "target")])]
    assert chat.history == [reply]


def test_beams_say_the_last_step(renderer: Renderer) -> None:
    chain = _chain(renderer)
    said = chain.index(renderer.spans.markers.target) + 1
    engine, parts = Scripted([chain, chain[said:]]), list[str]()
    chat = Chat(engine, renderer.spans, beams=3, max_new_tokens=200)
    reply = chat.send(QUERY, stream=parts.append)
    assert (reply.query_en, reply.answer_en, reply.answer) == ("Where is it 1?", "In the city 1.", "En la ciudad 1, señor.")
    assert "".join(parts) == reply.answer and reply.kind == Kind.CHAIN.value
    assert engine.beams == [1, 3] and engine.rooms == [200, 200 - said]
    assert engine.prompts[1] == [*engine.prompts[0], *chain[:said]]


def test_a_marker_ends_what_beams_say(renderer: Renderer) -> None:
    chain, markers = _chain(renderer), renderer.spans.markers
    said = chain.index(markers.target) + 1
    engine = Scripted([chain, [*chain[said:-1], markers.english, *chain[said:]]])
    reply = Chat(engine, renderer.spans, beams=3).send(QUERY)
    assert (reply.answer, reply.kind, reply.tokens) == ("En la ciudad 1, señor.", Kind.CHAIN.value, len(chain))
    assert reply.problems == ("wanted the query in English again where its end was due",)


def test_beams_have_nothing_to_say_in_english_or_without_room(renderer: Renderer) -> None:
    english = renderer.answer(renderer.recovery("In the city."))
    engine = Scripted([english])
    assert Chat(engine, renderer.spans, beams=3).send(ENGLISH).answer == "In the city."
    assert engine.beams == [1]
    engine = Scripted([_chain(renderer)])
    assert Chat(engine, renderer.spans, beams=3, mode="direct", max_new_tokens=1).send(QUERY).answer == ""
    assert engine.beams == [1]


def test_history_is_in_english(renderer: Renderer) -> None:
    engine = Scripted([_chain(renderer, 1), _chain(renderer, 2)])
    chat = Chat(engine, renderer.spans)
    chat.send(QUERY)
    chat.send("¿Y el niño?")
    assert engine.prompts[1] == renderer.prompt([
        Message("user", "Where is it 1?"), Message("assistant", "In the city 1."), Message("user", "¿Y el niño?", "target")])


def test_reset_forgets(renderer: Renderer) -> None:
    engine = Scripted([_chain(renderer)] * 2)
    chat = Chat(engine, renderer.spans)
    chat.send(QUERY)
    chat.reset()
    assert chat.history == []
    chat.send(QUERY)
    assert engine.prompts[1] == engine.prompts[0]


def test_a_chain_that_strays_is_guided_and_reported(renderer: Renderer) -> None:
    """The model begins with plain text and wants to stop after each step of the chain."""
    spans, markers, end = renderer.spans, renderer.spans.markers, renderer.end_id
    query, english, answer = spans.encode_english("Where?"), spans.encode_english("There."), spans.encode_target("Allí, señor.")
    engine, parts = Scripted([[*query[:1], *query, end, *english, end, *answer, end]]), list[str]()
    reply = Chat(engine, spans).send(QUERY, stream=parts.append)
    assert (reply.kind, reply.query_en, reply.answer_en, reply.answer) == (Kind.CHAIN.value, "Where?", "There.", "Allí, señor.")
    assert reply.problems == ("wanted more text where the query in English was due", "wanted its end where the answer in English was due",
                              "wanted its end where the answer was due")
    assert "".join(parts) == "Allí, señor."
    assert reply.tokens == len([markers.english, *query, markers.response, *english, markers.target, *answer, end])


def test_hidden_steps_that_never_end_leave_room_for_the_answer(renderer: Renderer) -> None:
    spans = renderer.spans
    words = spans.encode_english(" ".join(f"word{number}" for number in range(90)))
    engine = Scripted([[spans.markers.english, *words]])
    reply = Chat(engine, spans, max_new_tokens=60).send(QUERY)
    assert reply.tokens == 60 and reply.query_en and reply.answer_en and reply.answer
    assert reply.problems == ("wanted more text where the answer in English was due", "wanted more text where the answer was due", "cut")


def test_an_empty_answer_is_reported(renderer: Renderer) -> None:
    reply = Chat(Scripted([[renderer.end_id] * 10]), renderer.spans).send(QUERY)
    assert reply.answer == "" and reply.problems[-1] == "empty span"


def test_what_is_cut_is_reported(renderer: Renderer) -> None:
    room = len(_chain(renderer)) + 5
    tail = renderer.spans.encode_target(" y más")
    chain = _chain(renderer)[:-1]
    engine = Scripted([[*chain, *tail * 9]])
    reply = Chat(engine, renderer.spans, max_new_tokens=room).send(QUERY)
    assert engine.rooms == [room] and reply.tokens == room
    assert reply.problems[-1] == "cut"
    assert reply.answer


@pytest.mark.parametrize("form", ["recovery", "plain"])
def test_an_english_query(renderer: Renderer, form: str) -> None:
    spans, parts = renderer.spans, list[str]()
    said = [*spans.encode_english("In the city."), renderer.end_id]
    if form == "recovery":
        said = renderer.answer(renderer.recovery("In the city."))
    engine = Scripted([said, _chain(renderer)])
    chat = Chat(engine, spans)
    reply = chat.send(ENGLISH, stream=parts.append)
    assert engine.prompts == [renderer.prompt([Message("user", ENGLISH, "english")])], "in the original vocabulary, and nothing to mend"
    assert (reply.query_en, reply.answer_en, reply.answer) == (ENGLISH, "In the city.", "In the city.")
    # Plain text may yet turn out to be a chain whose first marker is missing, so it is shown when it is done, in one part.
    assert "".join(parts) == "In the city." and (form == "recovery" or len(parts) == 1)
    chat.send(QUERY)
    assert engine.prompts[1] == renderer.prompt([
        Message("user", ENGLISH), Message("assistant", "In the city."), Message("user", QUERY, "target")])


def test_who_asks_for_a_translation_gets_it(renderer: Renderer) -> None:
    """Sentence by sentence, in the form of *bitext*; the request stays in the history as it was said: it has no English of its own."""
    spans, markers, parts = renderer.spans, renderer.spans.markers, list[str]()
    first, second = "La biblioteca de la ciudad está cerrada.", "El jardín no."
    query = f"Translate into English: {first} {second}"
    said = [[*spans.encode_english(text), renderer.end_id] for text in ("The library is closed.", "Not the garden.")]
    engine = Scripted([*said, _chain(renderer)])
    chat = Chat(engine, spans)
    reply = chat.send(query, stream=parts.append)
    assert engine.prompts == [[*renderer.answer([Span(markers.target, text, "target")], end=False), markers.english]
                              for text in (first, second)]
    assert (reply.kind, reply.answer, reply.problems) == (Kind.ENGLISH.value, "The library is closed. Not the garden.", ())
    assert parts == [reply.answer] and reply.tokens == len(spans.encode_english(reply.answer))
    chat.send(QUERY)
    assert engine.prompts[-1] == renderer.prompt([
        Message("user", query, "target"), Message("assistant", reply.answer), Message("user", QUERY, "target")])


def test_the_oldest_turns_go_when_the_context_is_full(renderer: Renderer) -> None:
    turns = [_chain(renderer, number) for number in range(1, 6)]
    one = renderer.prompt([Message("user", QUERY, "target")])
    whole = [message for number in (1, 2, 3, 4) for message in (Message("user", f"Where is it {number}?"),
                                                                Message("assistant", f"In the city {number}."))]
    two_left = renderer.prompt([*whole[4:], Message("user", QUERY, "target")])
    engine = Scripted(turns)
    chat = Chat(engine, renderer.spans, max_new_tokens=100, context=len(two_left) + 100)
    for _ in turns:
        chat.send(QUERY)
    assert engine.prompts[-1] == two_left
    assert len(chat.history) == 5, "the conversation is still all there"
    small = Chat(Scripted(turns), renderer.spans, max_new_tokens=100, context=10)
    small.send(QUERY)
    small.send(QUERY)
    assert small._engine.prompts == [one, one]  # type: ignore[attr-defined]


def test_a_merged_folder_answers(make_folders: Callable[[str], Any], tmp_path: Path) -> None:
    """The real engine, on a model of random weights: the text means nothing, all else must hold."""
    folder = make_folders("padded").extended
    chat = load_chat(folder, max_new_tokens=12)
    parts: list[str] = []
    reply = chat.send(QUERY, stream=parts.append)
    assert reply.query == QUERY and 0 < reply.tokens <= 12 and reply.seconds > 0
    assert reply.problems, "random weights write no whole chain"
    (tmp_path / "merge").mkdir()
    for run in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunError, match="no transformed model"):
            load_chat(run)


def test_a_direct_answer_is_forced_by_its_marker(renderer: Renderer) -> None:
    """The model would write a chain; the first marker makes it answer at once, and the history stays in the target language."""
    spans, markers, end = renderer.spans, renderer.spans.markers, renderer.end_id
    words = spans.encode_target("En la ciudad, señor.")
    engine, parts = Scripted([[markers.english, *words, end]] * 2), list[str]()
    chat = Chat(engine, spans, mode="direct")
    reply = chat.send(QUERY, stream=parts.append)
    assert (reply.answer, reply.kind) == ("En la ciudad, señor.", Kind.TARGET.value) and "".join(parts) == reply.answer
    assert reply.tokens == len(words) + 2
    chat.send("¿Y el niño?")
    assert engine.prompts[1] == renderer.prompt([Message("user", QUERY, "target"), Message("assistant", reply.answer, "target"),
                                                 Message("user", "¿Y el niño?", "target")])


@pytest.mark.parametrize("mode", ["merged", "direct"])
@pytest.mark.parametrize(("asked", "to"), [
    ("Translate into Spanish:\nThe garden.", "target"), ("¿Cómo se dice esto en español? The garden.", "target"),
    ("TRADUCE al inglés:  El jardín.", "english"), ("I need this in English. El jardín.", "english")])
def test_who_asks_in_known_words_gets_it_in_each_mode(renderer: Renderer, mode: Mode, asked: str, to: str) -> None:
    said = renderer.spans.encode_english("The garden.")
    for stop in (renderer.end_id, renderer.spans.markers.english):
        engine = Scripted([[*said, stop]])
        reply = Chat(engine, renderer.spans, mode=mode, beams=4).send(asked)
        assert (reply.kind, reply.answer, reply.problems) == ((Kind.TARGET if to == "target" else Kind.ENGLISH).value, "The garden.", ())
        assert engine.beams == [4]
    assert Chat(Scripted([said]), renderer.spans, max_new_tokens=len(said), mode=mode).send(asked).problems == ("a sentence is cut",)


@pytest.mark.parametrize("asked", ["¿Qué es biblioteca en inglés?", "How do you say garden in Spanish?", "Translate: La biblioteca."])
def test_who_asks_for_a_translation_may_have_one(renderer: Renderer, asked: str) -> None:
    spans, markers, end = renderer.spans, renderer.spans.markers, renderer.end_id
    for mode, said in (("merged", [markers.target, *spans.encode_target("El jardín."), end]),
                       ("direct", [markers.response, *spans.encode_english("The library."), end])):
        reply = Chat(Scripted([said]), spans, mode=mode).send(asked)  # type: ignore[arg-type]
        assert reply.problems == () and reply.tokens == len(said)


def _words(renderer: Renderer, english: str) -> list[int]:
    return [*renderer.spans.encode_english(english), renderer.end_id]


def test_switched_the_original_answers_between_two_translations(renderer: Renderer) -> None:
    """The original reads a conversation in English throughout, in its own vocabulary and form; what is shown is a translation."""
    spans, markers, parts = renderer.spans, renderer.spans.markers, list[str]()
    engine = Scripted([_words(renderer, "Where is it?"), [*spans.encode_target("En la ciudad, señor."), renderer.end_id]] * 2)
    original = Scripted([_words(renderer, "In the city, sir.")] * 3)
    chat = Chat(engine, spans, mode="switched", beams=2, original=original)
    reply = chat.send(QUERY, stream=parts.append)
    assert (reply.query_en, reply.answer_en, reply.answer) == ("Where is it?", "In the city, sir.", "En la ciudad, señor.")
    assert (reply.kind, reply.problems, parts) == (Kind.CHAIN.value, (), [reply.answer])
    assert engine.prompts == [[*renderer.answer([Span(markers.target, QUERY, "target")], end=False), markers.english],
                              [*renderer.answer([Span(markers.english, reply.answer_en, "english")], end=False), markers.target]]
    assert engine.beams == [2, 2] and original.beams == [1]
    assert original.prompts == [renderer.prompt([Message("user", "Where is it?")])]
    assert reply.tokens == len(_words(renderer, "In the city, sir.")) + len(spans.encode_english("Where is it?")) + len(
        spans.encode_target("En la ciudad, señor."))
    english = chat.send(ENGLISH)
    assert (english.answer, english.kind) == ("In the city, sir.", Kind.ENGLISH.value) and len(engine.prompts) == 2
    chat.send(QUERY)
    answer = Message("assistant", "In the city, sir.")
    assert original.prompts[-1] == renderer.prompt([Message("user", "Where is it?"), answer, Message("user", ENGLISH), answer,
                                                    Message("user", "Where is it?")])


def test_switched_tells_what_is_cut_or_empty(renderer: Renderer) -> None:
    words = renderer.spans.encode_english("Where is it?")
    chat = Chat(Scripted([words, words]), renderer.spans, mode="switched", original=Scripted([words]), max_new_tokens=len(words))
    assert chat.send(QUERY).problems == ("the query in English is cut", "the answer in English is cut", "the answer is cut")
    nothing = Chat(Scripted([[renderer.end_id]] * 9), renderer.spans, mode="switched", original=Scripted([[renderer.end_id]]))
    reply = nothing.send(QUERY)
    assert (reply.query_en, reply.answer_en, reply.answer) == (QUERY, "", ""), "a query that becomes nothing is asked as it is"


def test_switched_translates_for_who_asks(renderer: Renderer) -> None:
    """The original does not know the language: a request for a translation is the transformed model's, in whatever words."""
    spans, markers = renderer.spans, renderer.spans.markers
    original = Scripted([])
    engine = Scripted([_words(renderer, "The garden."), [markers.target, *spans.encode_target("El jardín."), renderer.end_id]])
    chat = Chat(engine, spans, mode="switched", original=original)
    assert chat.send("TRADUCE al inglés:  El jardín.").answer == "The garden."
    assert chat.send("How do you say garden in Spanish?").answer == "El jardín."
    assert not original.prompts
    for mode, given in (("switched", None), ("merged", original)):
        with pytest.raises(ValueError, match="switched"):
            Chat(engine, spans, mode=mode, original=given)  # type: ignore[arg-type]


def test_a_model_that_never_learned_to_answer_directly(tmp_path: Path) -> None:
    (tmp_path / "merge").mkdir()
    (tmp_path / "finetune").mkdir()
    for name in ("merge/vocabulary.json", "merge/config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "finetune" / "manifest.json").write_text('{"metrics": {"mixture": {"direct": {"rows": 0}}}}')
    with pytest.raises(RunError, match=r"finetune\.direct of its recipe is 0"):
        load_chat(tmp_path, mode="direct")
