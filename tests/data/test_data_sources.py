"""Sources: pairs and documents from files and wheels, under one key, with every row counted."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from transllm.data.sources import read_documents, read_pairs
from transllm.data.types import MissingSourceError
from transllm.errors import DataError
from transllm.languages import LANGUAGES
from transllm.recipe.schema import Source

SPANISH = LANGUAGES["es"]


def bible(path: Path) -> None:
    rows = [(chapter, verse, f"In chapter {chapter} verse {verse}.", f"En el capítulo {chapter}, versículo {verse}.")
            for chapter in (1, 2) for verse in (1, 2, 3)]
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE verse (chapter, number, en, es)")
        base.executemany("INSERT INTO verse VALUES (?, ?, ?, ?)", rows)
        base.commit()


def test_verses_are_pairs_and_chapters_under_the_same_key(tmp_path: Path) -> None:
    bible(tmp_path / "b.db")
    source = Source(files="b.db", query="SELECT 'gen.' || chapter, en, es FROM verse ORDER BY chapter, number")
    pairs = list(read_pairs([source], language=SPANISH, folder=tmp_path))
    assert len(pairs) == 6 and {pair.key for pair in pairs} == {"gen.1", "gen.2"}
    for side, word in (("target", "capítulo"), ("english", "chapter")):
        for own in ([source], []):  # named as a source of its own, or the fall-back to the sides of parallel
            documents = list(read_documents(own, side=side, parallel=[source], language=SPANISH, folder=tmp_path))
            assert [document.key for document in documents] == ["gen.1", "gen.2"]
            assert documents[0].text.count("\n") == 2 and documents[0].text.count(word) == 3
    one_sided = Source(files="b.db", query="SELECT 'gen.' || chapter, es FROM verse ORDER BY chapter, number")
    documents = list(read_documents([one_sided], side="target", language=SPANISH, folder=tmp_path))
    assert [document.key for document in documents] == ["gen.1", "gen.2"]
    with pytest.raises(DataError, match="must give"):
        list(read_pairs([one_sided], language=SPANISH, folder=tmp_path))


def test_a_sentence_has_one_key_in_both_forms_and_from_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("The house is big and red.\tLa casa es grande y roja.\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"en": "the  house is BIG and red", "es": "La casa es roja y enorme."}))
    tsv, jsonl = Source(files="a.tsv"), Source(files="b.jsonl", columns=["en", "es"])
    pairs = list(read_pairs([tsv, jsonl], language=SPANISH, folder=tmp_path))
    documents = list(read_documents([], side="target", parallel=[tsv, jsonl], language=SPANISH, folder=tmp_path))
    assert len(pairs) == 2 and len({pair.key for pair in pairs} | {document.key for document in documents}) == 1


def test_every_row_is_counted_and_the_licence_is_the_wheels(tmp_path: Path, place_in_cache: Callable[..., Path]) -> None:
    rows = ["Good morning\tBuenos días", "Good morning!\tBuenos días", "Same\tSame", "12\t12", "\tvacío", "Hello there\t", "short"]
    wheel_rows = "\n".join([*rows, "Long text here and there\t" + "palabra " * 40]).encode()
    place_in_cache(tmp_path / "cache", {"d/a.tsv.gz": gzip.compress(wheel_rows)})
    reading = read_pairs([Source(package="some-data==1.2", pattern="d/*.tsv.gz", columns=[0, 1])], language=SPANISH, folder=tmp_path,
                         cache=tmp_path / "cache", max_dropped=1.0)
    assert [pair.target for pair in reading] == ["Buenos días"]
    report = reading.reports[0].as_dict()
    assert report["licence"] == "CC0-1.0" and report["read"] == 8 and report["kept"] == 1
    assert report["dropped"] == {"empty": 2, "duplicate": 1, "identical sides": 1, "length ratio": 1, "no letters": 1, "too few columns": 1}
    assert reading.reports[0].places["too few columns"] == ["d/a.tsv.gz, line 7"]


def test_too_many_dropped_rows_are_an_error_that_points_at_one(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"Sentence number {number}\tFrase número {number}\n" for number in range(10))
                                    + "Same\tSame\n" * 15)
    with pytest.raises(DataError, match=r"loses 15 of 25 rows \(identical sides 15.*line 11\)"):
        list(read_pairs([Source(files="a.tsv")], language=SPANISH, folder=tmp_path))
    assert len(list(read_pairs([Source(files="a.tsv")], language=SPANISH, folder=tmp_path, max_dropped=0.7))) == 10


def test_catalogues_in_a_wheel_by_language_pattern(tmp_path: Path, place_in_cache: Callable[..., Path],
                                                  make_mo: Callable[..., bytes]) -> None:
    def catalog(**texts: str) -> bytes:
        return json.dumps(texts).encode()

    place_in_cache(tmp_path, {
        "c/door/t/en.json": catalog(open="Open the &door"), "c/door/t/es.json": catalog(open="Abrir la &puerta"),
        "c/lamp/t/en.json": catalog(on="Turn on <b>the lamp</b>"), "c/lamp/t/es.json": catalog(on="Encender <b>la lámpara</b> roja"),
        "c/lamp/t/es-419.json": catalog(on="Prender"), "l/es/m.mo": make_mo({"_Quit the program": "_Salir del programa"})})
    sources = [Source(package="some-data==1.2", pattern="c/*/t/{lang}.json"), Source(package="some-data==1.2", pattern="l/{lang}/*.[mp]o")]
    pairs = list(read_pairs(sources, language=SPANISH, folder=tmp_path, cache=tmp_path))
    assert [(pair.english, pair.target) for pair in pairs] == [
        ("Open the door", "Abrir la puerta"), ("Turn on the lamp", "Encender la lámpara roja"), ("Quit the program", "Salir del programa")]
    documents = list(read_documents(sources, side="target", language=SPANISH, folder=tmp_path, cache=tmp_path))
    assert [(document.text, document.key) for document in documents] == [("Encender la lámpara roja", pairs[1].key)]
    with pytest.raises(DataError, match="no file that fits"):
        list(read_pairs([Source(package="some-data==1.2", pattern="x/{lang}.json")], language=SPANISH, folder=tmp_path, cache=tmp_path))


def test_names_with_a_hash_belong_together(tmp_path: Path) -> None:
    (tmp_path / "en-abc.json").write_text('{"a": "Yes, please"}')
    (tmp_path / "es-xyz.json").write_text('{"a": "Sí, por favor"}')
    pairs = list(read_pairs([Source(files="{lang}-*.json")], language=SPANISH, folder=tmp_path))
    assert [pair.target for pair in pairs] == ["Sí, por favor"]


def test_aligned_text_files(tmp_path: Path) -> None:
    folder = tmp_path / "odd [name]"  # what looks like a wildcard in a folder's name is none
    folder.mkdir()
    (folder / "opus.en").write_text("Good evening\n")
    (folder / "opus.es").write_text("Buenas tardes\n")
    pairs = list(read_pairs([Source(files="opus.{lang}", format="txt")], language=SPANISH, folder=folder))
    assert [pair.target for pair in pairs] == ["Buenas tardes"]


def test_a_missing_source_is_an_error_unless_it_is_optional(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Una frase bastante larga para un documento.\nOtra frase bastante larga para un documento.\n")
    with pytest.raises(MissingSourceError, match=r"no file 'nope/\*\.txt'.*optional"):
        list(read_documents([Source(files="nope/*.txt")], side="target", language=SPANISH, folder=tmp_path))
    sources = [Source(files="nope/*.txt", optional=True), Source(files=["a.txt"])]
    reading = read_documents(sources, side="target", language=SPANISH, folder=tmp_path)
    assert len(list(reading)) == 2
    assert reading.reports[0].missing is not None and "nope" in str(reading.reports[0].as_dict()["missing"])
    assert reading.reports[1].missing is None


def test_empty_files_and_empty_sources_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        list(read_documents([Source(files="a.txt")], side="target", language=SPANISH, folder=tmp_path))
    with pytest.raises(DataError, match="holds no rows"):
        list(read_documents([Source(files="b.txt", optional=True)], side="target", language=SPANISH, folder=tmp_path))


def test_unclear_sources_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"en": "a", "es": "b"}')
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.db").write_text("a")
    (tmp_path / "a.xyz").write_text("a")
    for name, said in {"a.jsonl": "columns", "a.txt": "{lang}", "a.db": "query", "a.xyz": "Set 'format'"}.items():
        with pytest.raises(DataError, match=said):
            list(read_pairs([Source(files=name)], language=SPANISH, folder=tmp_path))
    with pytest.raises(DataError, match="pattern"):
        list(read_pairs([Source(package="a==1")], language=SPANISH, folder=tmp_path))


def test_limits(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"Sentence number {number}\tFrase número {number}\n" for number in range(10)))
    source = Source(files="a.tsv", limit=4)
    assert len(list(read_pairs([source], language=SPANISH, folder=tmp_path))) == 4
    assert len(list(read_pairs([source, source], language=SPANISH, folder=tmp_path, limit=3))) == 3
    assert list(read_pairs([source], language=SPANISH, folder=tmp_path, limit=0)) == []


def test_side_of_two_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("This is a long enough sentence.\tEsta es una frase bastante larga.\n")
    source = Source(files="a.tsv", columns=[0, 1], side="english")
    assert next(read_documents([source], side="target", language=SPANISH, folder=tmp_path)).text.startswith("This")
    documents = read_documents([Source(files="a.tsv", columns=[1])], side="target", language=SPANISH, folder=tmp_path)
    assert next(documents).text.startswith("Esta")


def test_short_pairs_are_dropped_without_a_complaint(tmp_path: Path) -> None:
    rows = [*("Save\tGuardar" + str(number) for number in range(30)), "The house is old.\tLa casa es vieja."]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    reading = read_pairs([Source(files="a.tsv", columns=[0, 1])], language=SPANISH, folder=tmp_path, min_characters=17)
    assert [pair.english for pair in reading] == ["The house is old."]
    assert reading.reports[0].counts.dropped == {"too short": 30}
