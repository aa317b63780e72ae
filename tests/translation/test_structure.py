"""The structure of a text survives any translator, or the translation says what was lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transllm.progress import Silent
from transllm.translation import TextTranslator, Translation, lost_structure
from transllm.translation.masks import BRACKETS, NOTRANSLATE, XML, MaskForm
from transllm.translation.protected import FIRST_PLACE, with_numbers_of
from transllm.translation.translator import Direction

FORMS = [None, BRACKETS, NOTRANSLATE, XML]


class Simple:
    """A translator that does one thing to each sentence; it answers in reverse order, as translators may."""

    name = "simple"
    longest = 200
    whole_lines = False

    def __init__(self, change: Callable[[str], str], masks: MaskForm | None) -> None:
        self.change, self.masks = change, masks
        self.identity: dict[str, Any] = {}
        self.seen: list[str] = []

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        self.seen += sentences
        for index in reversed(range(len(sentences))):
            yield index, Translation(self.change(sentences[index]), False)

    def close(self) -> None: ...


def translate(text: str, change: Callable[[str], str], masks: MaskForm | None) -> Translation:
    return TextTranslator(Simple(change, masks)).translate([text], to="target", progress=Silent(), label="")[0]


def upper(sentence: str) -> str:
    """All words in capitals; markup and masks stay, as machines leave them."""
    return "".join(part if part.startswith(("<", "&")) else part.upper() for part in re.split(r"(<[^<>]*>|&\w+;)", sentence))


def turned(sentence: str) -> str:
    """The words in another order."""
    return " ".join(reversed(sentence.split()))


def careless(sentence: str) -> str:
    """What models do: they leave masks out, and write numbers their way."""
    return re.sub(r"\[\d+\]|<[^<>]*>", "", sentence).replace(",", ";").replace("1", "uno ").replace("a", "â")


_PIECES = st.sampled_from([
    "word", "Two words.", "`x = 1`", "``a ` b``", "https://a.org/b?c=1&d", "me@a.org", "{name}", "${VAR}", "%(x)d", "%s", "100%", "<b>",
    "</b>", "<br/>", "1,234.5", "3.11", "[1]", "5 < 6 & 7", "\n", "\n- ", "\n1. ", "\n> ", "\n```\ncode. 1\n```\n", " ", "**", "(see `y`)",
    "$HOME", "\n| a | b |\n|---|---|\n| 1 | `c|d` |\n", "\ue000", "\U000f0000", "[a](http://b.c)", "ñandú?"])
_WRITTEN = st.lists(_PIECES, max_size=8).map(" ".join)
_TEXTS = _WRITTEN | st.lists(_PIECES, max_size=8).map("".join) | st.text(max_size=30)


@given(_TEXTS, st.sampled_from(FORMS))
def test_any_text_comes_back_from_one_who_changes_nothing(text: str, masks: MaskForm | None) -> None:
    made = translate(text, lambda sentence: sentence, masks)
    assert re.sub(r"\s", "", made.text) == re.sub(r"\s", "", text)
    assert made.text.count("\n") == text.count("\n")
    assert not made.lost


@settings(max_examples=300)
@given(_TEXTS, st.sampled_from(FORMS), st.sampled_from([upper, turned, careless]))
def test_what_is_not_lost_is_there(text: str, masks: MaskForm | None, change: Callable[[str], str]) -> None:
    made = translate(text, change, masks)
    assert made.lost or lost_structure(text, made.text) == ()


@given(_WRITTEN, st.sampled_from(FORMS))
def test_nothing_is_lost_by_one_who_changes_words_only(text: str, masks: MaskForm | None) -> None:
    assert translate(text, upper, masks).lost == ()


@pytest.mark.parametrize("masks", FORMS)
@pytest.mark.parametrize("change", [upper, turned, careless])
def test_structure_survives(masks: MaskForm | None, change: Callable[[str], str]) -> None:
    text = ("Use `print(x)` to show {name}, see https://a.org/b_c?d=1.\n\n```py\n# a comment. no\n```\n"
            "1. Wash 1,234.5 apples & 5 < 6 pears.\n   - [x] Mail me@a.org at 5:30\n\n"
            "| City | `a|b` |\n| --- | --- |\n| big town | 3.5 |\n\n> %(n)d of %s, <b>bold</b> and ${X}")
    made = translate(text, change, masks)
    assert made.lost == () and lost_structure(text, made.text) == ()
    assert made.text != text and "```py\n# a comment. no\n```" in made.text


def test_masks_are_seen_in_their_place_and_pieces_only_after_a_failure() -> None:
    text = "Then run `a b` twice, please."
    kept = Simple(turned, BRACKETS)
    made = TextTranslator(kept).translate([text], to="target", progress=Silent(), label="")[0]
    assert kept.seen == ["Then run [1] twice, please."] and made.text == "please. twice, `a b` run Then"
    lost = Simple(careless, BRACKETS)
    made = TextTranslator(lost).translate([text], to="target", progress=Silent(), label="")[0]
    assert lost.seen == ["Then run [1] twice, please.", "Then run", "twice, please."] and made.text == "Then run `a b` twice; pleâse."


def test_a_part_comes_back_as_a_part() -> None:
    made = translate("If `x` is big, **`y`** is small (like `z`).", lambda part: part[0].upper() + part[1:].rstrip(".") + ".", None)
    assert made.text == "If `x` is big, **`y`** is small (like `z`)."


@pytest.mark.parametrize(("source", "translation", "text", "missing"), [
    ("It costs 1,234.5", "Cuesta 1.234,5", "Cuesta 1,234.5", []),
    ("3.11 and 3.11", "3,11 y 3.11", "3.11 y 3.11", []),
    ("at 5:30 on 12", "el 12 a las 5.30", "el 12 a las 5:30", []),
    ("two of 3", "2 de 3", "2 de 3", []),
    ("12 and 21", "21", "21", ["12"]),
    ("in 2024", "ในปี ๒๐๒๔", "ในปี 2024", []),
    ("7 of 7", "7", "7", ["7"]),
])
def test_numbers_come_back_in_the_form_of_the_text(source: str, translation: str, text: str, missing: list[str]) -> None:
    assert with_numbers_of(source, translation) == (text, missing)


@pytest.mark.parametrize(("source", "translation", "lost"), [
    ("Use `a`.", "Usa `b`.", ("`a`", "`b`")),
    ("- one", "uno", ("-",)),
    ("one", "1. uno", ("1.",)),
    ("a\nb", "a b", ("2 lines, not 1",)),
    ("```\nx\n```", "```\ny\n```", ("```\nx\n```", "```\ny\n```")),
    ("| a | b |", "| a b |", ("|",)),
    ("It is 5.", "Son cinco.", ("5",)),
    ("Two.", "Son 2.", ()),
    ("50% sure", "50% seguro", ()),
])
def test_what_was_lost_is_named(source: str, translation: str, lost: tuple[str, ...]) -> None:
    assert lost_structure(source, translation) == lost


@pytest.mark.parametrize(("change", "lost"), [(lambda _: "", ("Hello there.",)), (lambda text: f"{text} `code`", ("`code`",)),
                                              (lambda text: f"- {text}", ("-",))])
def test_a_translator_that_breaks_structure_is_seen(change: Callable[[str], str], lost: tuple[str, ...]) -> None:
    assert translate("Hello there.", change, BRACKETS).lost == lost


@given(st.text(st.sampled_from(f"ab <>&[]1 {chr(FIRST_PLACE)}"), max_size=20), st.sampled_from([BRACKETS, NOTRANSLATE, XML]))
def test_masks_are_read_as_they_were_written(sentence: str, form: MaskForm) -> None:
    count = 0
    numbered = ""
    for character in sentence:
        numbered += chr(FIRST_PLACE + count) if ord(character) == FIRST_PLACE else character
        count += ord(character) == FIRST_PLACE
    assert form.read(numbered, form.write(numbered)) == numbered
    if count:
        assert form.read(numbered, "nothing of it") is None
        assert form.read(numbered, form.write(numbered) * 2) is None
