"""The model translates itself, sentence by sentence; Apertium says what is missing."""

from __future__ import annotations

import contextlib
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from transllm.errors import DataError, MissingExtraError, ModelError
from transllm.generation import Generated, Sampling
from transllm.languages import LANGUAGES
from transllm.pipeline.stage import Context
from transllm.pipeline.translators import open_sentences
from transllm.progress import Silent
from transllm.recipe.schema import Recipe
from transllm.tcot import Renderer
from transllm.tokenizer import SpanTokenizer
from transllm.translation import ApertiumTranslator, SelfTranslator, TextTranslator


class Upper:
    """An engine that 'translates' to upper case; it answers in reverse order, as engines may."""

    def __init__(self, spans: SpanTokenizer, *, stop: int | None = None) -> None:
        self._spans, self._stop = spans, stop
        self.prompts: list[list[int]] = []
        self.sampling: Sampling | None = None

    def generate(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, limits: Sequence[int] | None = None,
                 on_token: Callable[[int, int], None] | None = None) -> Iterator[Generated]:
        self.prompts, self.sampling = [list(prompt) for prompt in prompts], sampling
        for index in reversed(range(len(prompts))):
            text = self._spans.decode(list(prompts[index])).upper()
            ids = [*self._spans.encode_target(" " + text), *([] if self._stop is None else [self._stop])]
            cut = ids[: sampling.max_new_tokens]
            yield Generated(index, cut, "stop" if cut and cut[-1] in sampling.stop_ids else "length")


class Counting(Silent):
    def __init__(self) -> None:
        self.done, self.total = 0.0, 0.0

    def advance(self, n: float, note: str = "") -> None:
        self.done += n

    @contextlib.contextmanager
    def task(self, label: str, total: float, unit: str) -> Iterator[Counting]:
        self.total = total
        yield self


@pytest.fixture
def renderer(tiny_spans: SpanTokenizer) -> Renderer:
    return Renderer(tiny_spans)


@pytest.mark.parametrize("to", ["target", "english"])
def test_the_model_translates_itself(renderer: Renderer, to: str) -> None:
    spans = renderer.spans
    engine, bar = Upper(spans, stop=renderer.end_id), Counting()
    translator = TextTranslator(SelfTranslator(engine, renderer))
    texts = ["The library. The bridge!\n\n- a garden\n42", "The bridge!", ""]
    found = translator.translate(texts, to=to, progress=bar, label="test")  # type: ignore[arg-type]
    assert [one.text for one in found] == ["THE LIBRARY. THE BRIDGE!\n\n- A GARDEN\n42", "THE BRIDGE!", ""]
    assert not any(one.cut for one in found)
    assert len(engine.prompts) == 3, "equal sentences are translated once"
    assert (bar.done, bar.total) == (3, 3)
    markers = spans.markers
    expected = ([markers.english, *spans.encode_english("The library."), markers.target] if to == "target" else
                [markers.target, *spans.encode_target("The library."), markers.english])
    assert engine.prompts[0] == expected
    assert engine.sampling is not None and engine.sampling.temperature == 0
    assert engine.sampling.stop_ids == renderer.stop_ids | {markers.english, markers.response, markers.target}


def test_beams_are_asked_of_the_engine_and_told_apart_in_the_cache(renderer: Renderer) -> None:
    engine = Upper(renderer.spans, stop=renderer.end_id)
    searched, greedy = SelfTranslator(engine, renderer, beams=3), SelfTranslator(engine, renderer)
    (found,) = TextTranslator(searched).translate(["Hi."], to="target", progress=Silent(), label="test")
    assert found.text == "HI." and engine.sampling is not None and engine.sampling.beams == 3
    assert searched.identity != greedy.identity


def test_a_translation_that_is_cut_says_so(renderer: Renderer) -> None:
    translator = TextTranslator(SelfTranslator(Upper(renderer.spans, stop=renderer.end_id), renderer, longest=12))
    short, long, mixed = translator.translate(["Hi.", "The quick garden has a bridge.", "Hi. The quick garden has a bridge."], to="target",
                                              progress=Silent(), label="test")
    assert not short.cut and short.text == "HI."
    assert long.cut and len(long.text) < 30
    assert mixed.cut and mixed.text.startswith("HI. THE"), "one cut sentence makes the text cut"


def test_a_second_marker_ends_a_translation(renderer: Renderer) -> None:
    engine = Upper(renderer.spans, stop=renderer.spans.markers.english)
    (found,) = TextTranslator(SelfTranslator(engine, renderer)).translate(["Hi."], to="target", progress=Silent(), label="test")
    assert (found.text, found.cut) == ("HI.", False)


def test_no_apertium_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="apt-get install"):
        ApertiumTranslator(LANGUAGES["es"])


def _command(folder: Path, body: str) -> None:
    file = folder / "apertium"
    file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_apertium_translates_sentence_by_sentence(path: Path) -> None:
    _command(path, '[ "$1" = -l ] && printf "  eng-spa\\n  spa-eng\\n" && exit 0\n[ "$2" = eng-spa ] && exec tr a-z A-Z\nexec tr A-Z a-z')
    translator = TextTranslator(ApertiumTranslator(LANGUAGES["es"]))
    bar = Counting()
    texts = ["The library. A bridge!\n\n- a garden", "", "42"]
    assert [one.text for one in translator.translate(texts, to="target", progress=bar, label="test")] == [
        "THE LIBRARY. A BRIDGE!\n\n- A GARDEN", "", "42"]
    assert (bar.done, bar.total) == (3, 3)
    assert translator.translate(["HOLA."], to="english", progress=bar, label="test")[0].text == "hola."
    assert translator.translate([], to="english", progress=bar, label="test") == []


def test_apertium_without_the_pair_is_an_error(path: Path) -> None:
    _command(path, "echo eng-cat; echo cat-eng; echo eng-spa")
    with pytest.raises(ModelError, match="direction spa-eng"):
        ApertiumTranslator(LANGUAGES["es"])


@pytest.mark.parametrize(("body", "message"), [("echo broken >&2; exit 3", "broken"), ("echo one; echo; echo two", "2 sentences for 1")])
def test_apertium_that_fails_is_an_error(path: Path, body: str, message: str) -> None:
    _command(path, f'[ "$1" = -l ] && printf "eng-spa\\nspa-eng\\n" && exit 0\n{body}')
    translator = TextTranslator(ApertiumTranslator(LANGUAGES["es"]))
    with pytest.raises(DataError, match=message):
        translator.translate(["Hi."], to="target", progress=Silent(), label="test")


@pytest.mark.skipif(shutil.which("apertium") is None, reason="Apertium is not installed")
def test_real_apertium_keeps_structure_and_sentences_apart() -> None:
    try:
        translator = TextTranslator(ApertiumTranslator(LANGUAGES["es"]))
    except ModelError as error:
        pytest.skip(str(error))
    texts = ["the big\ndogs are running", "Run `print(x)` and open {name} 3.5 times & wait < 5 minutes.", "- [ ] Call me@example.org\n\n42"]
    found = translator.translate(texts, to="target", progress=Silent(), label="test")
    assert [one.lost for one in found] == [(), (), ()]
    assert found[0].text.split("\n")[0].lower() == "el grande", "no rule reads over a line's end"
    assert "`print(x)`" in found[1].text and "minutos" in found[1].text


@pytest.mark.parametrize(("module", "settings", "extra"), [
    ("ctranslate2", {"name": "ctranslate2", "model": "org/name"}, "ctranslate2"), ("deepl", {"name": "deepl"}, "deepl"),
    ("google.cloud.translate_v3", {"name": "google"}, "google")])
def test_what_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, settings: dict[str, str],
                                               extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    if "." in module:
        monkeypatch.setitem(sys.modules, module.rpartition(".")[0], None)
    recipe = Recipe.model_validate({"model": "a/b", "language": "es", "data": {}, "bridge": {"translator": settings}})
    with pytest.raises(MissingExtraError, match=rf"pip install 'transllm\[{extra}\]'"):
        open_sentences(Context(recipe, tmp_path, tmp_path, Silent(), tmp_path))
