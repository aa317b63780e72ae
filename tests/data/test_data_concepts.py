"""Word lists by concept."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from transllm.data.concepts import read_concepts
from transllm.data.members import Member
from transllm.errors import DataError

MAP: Mapping[str, object] = {
    "en": {"the pillow": [["1", "PILLOW", 3, "noun", 1]], "pillow": [["1", "PILLOW", 2, "noun", 1]],
           "the dinner (supper)": [["2", "DINNER", 4, "noun"]], "to eat": [["3", "EAT", 9, "verb", 1]],
           "the food": [["3", "EAT", 1, "noun", 1]], "snow": [["4", "SNOW", 1, "noun", 1]]},
    "es": {"ALMOHADA": [["1", "PILLOW", 1, "noun", 1]], "cena": [["2", "DINNER", 1, "noun", 1]],
           "Comida, cena": [["2", "DINNER", 1, "noun", 1]], "Cena": [["2", "DINNER", 1, "noun", 1]],
           "comer": [["3", "EAT", 7, "verb", 1]], "comida": [["3", "EAT", 2, "noun", 1]]},
    "de": {"KISSEN": [["1", "PILLOW", 1, "noun", 1]], "Kissen": [["1", "PILLOW", 1, "noun", 1]]}}


def _read(folder: Path, content: object, language: str = "es") -> tuple[list[tuple[str, ...]], list[str]]:
    file = folder / "concepts.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    drops: list[str] = []
    return [row.texts for row in read_concepts(Member(file), language, lambda reason, _: drops.append(reason))], drops


def test_words_of_one_concept_translate_each_other(tmp_path: Path) -> None:
    """Most lists decide, remarks and second words go, words in capitals are written small, and a verb is no noun."""
    rows, drops = _read(tmp_path, MAP)
    assert rows == [("the pillow", "almohada"), ("the dinner", "cena"), ("to eat", "comer"), ("the food", "comida")]
    assert drops == ["no translation"]
    assert _read(tmp_path, MAP, "de")[0] == [("the pillow", "Kissen")]


def test_a_zip_file_inside_a_wheel(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("concepticon.json", json.dumps(MAP))
    wheel = tmp_path / "some_words-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("words/data.zip", packed.getvalue())
    with zipfile.ZipFile(wheel) as archive:
        rows = read_concepts(Member(wheel, "words/data.zip", archive), "es", lambda *_: None)
        assert next(rows).texts == ("the pillow", "almohada")


@pytest.mark.parametrize(("content", "message"), [
    ({"es": MAP["es"]}, "no words of the language 'en'"),
    ({"en": MAP["en"]}, "no words of the language 'es'. It has: en"),
    (["en", "es"], "its first keys are languages"),
    ({"en": {"snow": "nieve"}, "es": {"nieve": "snow"}}, "wanted is"),
    ({"en": {"snow": [["4", "SNOW", "often", "noun"]]}, "es": {}}, "wanted is"),
])
def test_another_file_is_told(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, content)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "concepts.zip"
    file.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(DataError, match=r"concepts.zip is neither JSON nor a zip file"):
        list(read_concepts(Member(file), "es", lambda *_: None))
