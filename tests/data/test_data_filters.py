"""Cleaning, filters and the cut."""

from __future__ import annotations

import pytest

from transllm.data.filters import DocumentFilter, PairFilter, clean, clean_message, normalise, placeholder_share
from transllm.data.split import exclude, held_texts, part, text_key
from transllm.data.types import Counts, Document, Pair


@pytest.mark.parametrize(("raw", "expected"), [
    ("a\u00adb  c\t d ", "ab c d"), ("x\r\ny\rz\u2028w", "x\ny\nz\nw"), ("a\n\n\n\nb", "a\n\nb"), ("\ufeffhola\x00\u200b", "hola"),
    ("e\u0301", "\u00e9"), ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"), ("ก ำ", "ก ำ"), ("plain", "plain"),
    ("a\ud83db", "ab")])
def test_clean(raw: str, expected: str) -> None:
    assert clean(raw) == expected
    assert clean(clean(raw)) == clean(raw)


@pytest.mark.parametrize(("raw", "expected"), [
    ("&File", "File"), ("Save &As...", "Save As..."), ("E&xit", "Exit"), ("R&D and AT&T", "R&D and AT&T"),
    ("this && that", "this & that"), ("Q & A", "Q & A"),
    ("_Edit", "Edit"), ("E_xit", "Exit"), ("Add _tag", "Add tag"), ("max_length", "max_length"), ("use __init__", "use __init__"),
    ("文件(&F)", "文件"), ("<b>Big</b> &amp; small", "Big & small"),
    ("a<br/>b", "a\nb"), ("1 < 2 > 0", "1 < 2 > 0"), ("%(user_name)s left", "%(user_name)s left")])
def test_clean_message(raw: str, expected: str) -> None:
    assert clean_message(raw) == expected


def test_normalise_makes_alike_what_differs_in_form_only() -> None:
    assert normalise("  ¡Hola,   MUNDO! ") == normalise("hola mundo")
    assert normalise("1.10") != normalise("11.0")
    assert normalise("กี่") != normalise("กี")  # marks of other scripts are letters, not punctuation


def pair(english: str, target: str) -> Pair:
    return Pair(english, target, text_key(english), "test")


@pytest.mark.parametrize(("english", "target", "reason"), [
    ("Hello", "Hola", None), ("", "Hola", "empty"), ("Hello", "", "empty"), ("12:30", "12.30", "no letters"),
    ("K", "Tecla K", "too short"),
    ("Wi-Fi", "wi fi", "identical sides"), ("{name} %s", "{name} de %s", "mostly placeholders"),
    ("You have %d new messages", "Tiene %d mensajes nuevos", None),
    ("A sentence of some length that goes on", "No", "length ratio"), ("No", "No, de ninguna manera señor", "length ratio"),
    ("a" * 3000, "b" * 3000, "too long"), ("The economy grew by 100% growth", "La economía creció un 100% de crecimiento", None)])
def test_pair_filter(english: str, target: str, reason: str | None) -> None:
    assert PairFilter()(pair(english, target)) == reason


def test_duplicates_are_found_by_their_normalised_form() -> None:
    keep = PairFilter()
    assert keep(pair("Good day", "Buenos días")) is None
    assert keep(pair("good day!", "¡Buenos días!")) == "duplicate"
    assert keep(pair("Good day", "Buen día")) is None
    documents = DocumentFilter(min_characters=5)
    reasons = [documents(Document(text, "k", "s")) for text in ("uno dos", "UNO dos.", "uno", "", "12 34 56")]
    assert reasons == [None, "duplicate", "too short", "empty", "no letters"]


def test_placeholder_share() -> None:
    assert placeholder_share("%s of %(n)d and {x}") == pytest.approx(10 / 19)
    assert placeholder_share("no placeholders at all") == 0


def test_the_cut_is_stable_and_of_the_right_size() -> None:
    keys = [f"gen.{number}" for number in range(20_000)]
    parts = [part(key, held_out=0.02, development=0.01) for key in keys]
    assert parts.count("held_out") / len(keys) == pytest.approx(0.02, abs=0.004)
    assert parts.count("development") / len(keys) == pytest.approx(0.01, abs=0.003)
    wider = [part(key, held_out=0.05, development=0.0) for key in keys]
    assert all(new == "held_out" for old, new in zip(parts, wider, strict=True) if old == "held_out")  # a larger part holds the smaller one
    fixed = [part(key, held_out=0.5, development=0.25) for key in ("gen.1", "gen.4", "Hello!", "hello")]
    assert fixed == ["held_out", "development", "held_out", "held_out"]
    assert part("x", held_out=0.0, development=0.0) == "train" and part("x", held_out=1.0, development=0.0) == "held_out"


def test_exclude_drops_what_equals_a_held_out_text_under_another_key() -> None:
    held = held_texts([pair("Save", "Guardar"), "Una pregunta"])
    counts = Counts()
    rows = [pair("Store", "guardar"), pair("Keep", "Conservar"), pair("A question", "¿Una pregunta?")]
    assert [row.english for row in exclude(rows, held, counts=counts)] == ["Keep"]
    assert counts.dropped == {"in held-out part": 2}


def test_counts_add_up() -> None:
    first, second = Counts(), Counts()
    first.keep(2)
    first.drop("empty")
    second.drop("empty", 3)
    total = first + second
    assert total.as_dict() == {"read": 6, "kept": 2, "dropped": {"empty": 4}}
    assert first.as_dict()["read"] == 3  # the sum shares nothing with its parts
