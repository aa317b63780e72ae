"""Requests for translations: whole phrases in every language of the table, and a message that asks for one is known."""

from __future__ import annotations

import pytest

from transllm.data.language import is_language
from transllm.data.requests import _table, asks_for_translation, requests, translation_asked
from transllm.languages import LANGUAGES, Language

OWN = sorted(set(_table()) - {"en"})


@pytest.mark.parametrize("code", [*OWN, "fi"])
@pytest.mark.parametrize("to", ["target", "english"])
def test_every_request_holds_its_text_once(code: str, to: str) -> None:
    language = LANGUAGES[code]
    forms = requests(language, to)  # type: ignore[arg-type]
    assert forms[0].in_english and len({one.form for one in forms}) == len(forms) >= 12
    assert all(one.form.count("{text}") == 1 and "{name}" not in one.form for one in forms)
    assert all(one.about("a {text} b {name}").count("a {text} b {name}") == 1 for one in forms), "braces of the text stay"
    assert [one.in_english for one in forms[:4]] == ([True, False, True, False] if code in OWN else [True] * 4)


@pytest.mark.parametrize("code", OWN)
def test_a_request_is_known_for_one_and_is_in_its_language(code: str) -> None:
    language = LANGUAGES[code]
    for to in ("target", "english"):
        for one in requests(language, to):  # type: ignore[arg-type]
            assert asks_for_translation(one.about("42"), language), one
            if not one.in_english:
                assert is_language(one.about("") * 2, code), one
    assert not asks_for_translation("¿Qué hay en la biblioteca?", language)
    assert len(_table()[code]["target"]) == len(_table()[code]["english"]) >= 6


@pytest.mark.parametrize("code", [*OWN, "fi"])
@pytest.mark.parametrize("to", ["target", "english"])
def test_a_whole_request_says_into_which_language(code: str, to: str) -> None:
    language = LANGUAGES[code]
    for one in requests(language, to):  # type: ignore[arg-type]
        for text in ("42", "One (two).\nThree? [four]"):
            assert translation_asked(one.about(text), language) == (text, to), one
            assert translation_asked(one.about(f" {text}\n").replace(" ", "  "), language) == (text.replace(" ", "  "), to), one
        assert translation_asked(one.about(" "), language) is None, "there is nothing to translate"


def test_what_only_speaks_of_translation_asks_for_none() -> None:
    for said in ("¿Es difícil aprender inglés?", "Háblame de la traducción al español.", "Traduce al inglés",
                 "How do you say garden in Spanish?"):
        assert translation_asked(said, LANGUAGES["es"]) is None


def test_a_language_that_the_table_lacks() -> None:
    language = Language("quy", "Ayacucho Quechua", "Runa simi")
    assert all(one.in_english for one in requests(language, "target"))
    assert "Ayacucho Quechua" in requests(language, "target")[0].form and "English" in requests(language, "english")[0].form
    assert asks_for_translation("Say it in Ayacucho Quechua", language) and not asks_for_translation("Allinllachu?", language)
