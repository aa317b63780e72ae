"""Readers: every format and compression by hand-made files, and what broken files are called."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from transllm.data.catalogs import read_catalog, read_gettext
from transllm.data.members import Member
from transllm.data.readers import read_aligned, read_jsonl, read_parquet, read_sqlite, read_table, read_txt
from transllm.errors import DataError


class Drops(list[tuple[str, str]]):
    def __call__(self, reason: str, place: str) -> None:
        self.append((reason, place))


def write(path: Path, text: str | bytes) -> Member:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Member(path)


def test_txt_is_one_document_a_line_and_keeps_its_line_numbers(tmp_path: Path) -> None:
    rows = list(read_txt(write(tmp_path / "a.txt", "\ufeffuno\n\n  \ndos\r\n# tres")))
    assert [row.texts for row in rows] == [("uno",), ("dos",), ("# tres",)]
    assert rows[1].place.endswith("a.txt, line 4")


def test_all_compressions_give_the_same_lines(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    raw = b"one\tuno\ntwo\tdos\n"
    halves = zstandard.compress(raw[:8]) + zstandard.compress(raw[8:])  # two frames: the second must not be lost
    forms = {"": raw, ".gz": gzip.compress(raw), ".xz": lzma.compress(raw), ".bz2": bz2.compress(raw), ".zst": halves}
    for ending, packed in forms.items():
        member = write(tmp_path / f"a.tsv{ending}", packed)
        assert member.ending == ".tsv"
        assert [row.texts for row in read_table(member, [0, 1], Drops(), quoted=False)] == [("one", "uno"), ("two", "dos")]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_damaged_compression_is_one_sentence_that_names_the_file(tmp_path: Path, ending: str) -> None:
    if ending == ".zst":
        pytest.importorskip("zstandard")
    with pytest.raises(DataError, match=r"b\.txt\S+ is damaged"):
        list(read_txt(write(tmp_path / f"b.txt{ending}", b"no archive at all")))
    if ending == ".gz":
        with pytest.raises(DataError, match="is damaged"):
            list(read_txt(write(tmp_path / "c.txt.gz", gzip.compress(b"line\n" * 1000)[:-9])))


def test_wrong_encoding_names_line_and_byte(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"l\.txt is not UTF-8: line 2, byte 8 is 0xf1"):
        list(read_txt(write(tmp_path / "l.txt", b"hola\nesp\xf1ana")))
    with pytest.raises(DataError, match="looks like UTF-16"):
        list(read_txt(write(tmp_path / "u.txt", "hola".encode("utf-16"))))


def test_jsonl_columns_nested_columns_and_broken_lines(tmp_path: Path) -> None:
    lines = ['{"t": {"en": "a", "es": "b"}}', "{oops",
             '{"t": {"en": "a"}}', '{"t": {"en": "a", "es": null}}', '{"t": {"en": "a", "es": 5}}', ""]
    drops = Drops()
    rows = list(read_jsonl(write(tmp_path / "a.jsonl", "\n".join(lines)), ["t.en", "t.es"], drops))
    assert [row.texts for row in rows] == [("a", "b")]
    assert [reason for reason, _ in drops] == ["broken JSON", "missing column", "empty column", "column is not text"]
    assert drops[0][1].endswith("a.jsonl, line 2")


def test_a_first_row_that_is_wrong_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"j\.jsonl, line 1 is not JSON"):
        list(read_jsonl(write(tmp_path / "j.jsonl", "text\n"), ["text"], Drops()))
    with pytest.raises(DataError, match=r"line 1 has no column 'text'.*'txt'"):
        list(read_jsonl(write(tmp_path / "k.jsonl", '{"txt": "a"}\n'), ["text"], Drops()))
    with pytest.raises(DataError, match=r"t\.tsv, line 1 has 1 column, the recipe wants column 1"):
        list(read_table(write(tmp_path / "t.tsv", "alone\na\tb\n"), [0, 1], Drops(), quoted=False))
    with pytest.raises(DataError, match=r"h\.tsv, line 1 has no column 'es'.*'en', 'fr'"):
        list(read_table(write(tmp_path / "h.tsv", "en\tfr\na\tb\n"), ["en", "es"], Drops(), quoted=False))


def test_table_with_header_short_rows_and_quotes(tmp_path: Path) -> None:
    drops = Drops()
    rows = list(read_table(write(tmp_path / "a.tsv", 'es\tid\ten\nb"b\t1\ta\nshort\n'), ["en", "es"], drops, quoted=False))
    assert [row.texts for row in rows] == [("a", 'b"b')]
    assert drops == [("too few columns", f"{tmp_path / 'a.tsv'}, line 3")]
    rows = list(read_table(write(tmp_path / "a.csv", '"one, two","line\nbreak"\n'), [0, 1], Drops(), quoted=True))
    assert [row.texts for row in rows] == [("one, two", "line\nbreak")]


def test_aligned_files_of_different_length_are_an_error(tmp_path: Path) -> None:
    english, target = write(tmp_path / "a.en", "one\n\ntwo\n"), write(tmp_path / "a.es", "uno\n\ndos\n")
    assert [row.texts for row in read_aligned(english, target)] == [("one", "uno"), ("two", "dos")]
    with pytest.raises(DataError, match="ends before line 3"):
        list(read_aligned(english, write(tmp_path / "b.es", "uno\n\n")))
    with pytest.raises(DataError, match="goes on"):
        list(read_aligned(english, write(tmp_path / "c.es", "uno\n\ndos\ntres\n")))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"translation": [{"en": "one", "es": "uno"}, {"en": "two", "es": None}], "id": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    drops = Drops()
    rows = list(read_parquet(Member(tmp_path / "a.parquet"), ["translation.en", "translation.es"], drops))
    assert [row.texts for row in rows] == [("one", "uno")]
    assert drops == [("empty column", f"{tmp_path / 'a.parquet'}, row 2")]
    with pytest.raises(DataError, match="no column 'text'"):
        list(read_parquet(Member(tmp_path / "a.parquet"), ["text"], Drops()))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(read_parquet(write(tmp_path / "b.parquet", "no"), ["text"], Drops()))


def test_sqlite(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as base:
        base.execute("CREATE TABLE verse (chapter, en, es)")
        base.executemany("INSERT INTO verse VALUES (?, ?, ?)", [(1, "one", "uno"), (1, "two", None)])
        base.commit()
    member, drops = Member(tmp_path / "a.db"), Drops()
    rows = list(read_sqlite(member, "SELECT chapter, en, es FROM verse", drops))
    assert [(row.document, row.texts) for row in rows] == [("1", ("one", "uno"))]
    assert [reason for reason, _ in drops] == ["empty column"]
    with pytest.raises(DataError, match=r"no such table: chapter\. It has the tables verse\."):
        list(read_sqlite(member, "SELECT 1, 2 FROM chapter", Drops()))
    with pytest.raises(DataError, match="gives 1 columns"):
        list(read_sqlite(member, "SELECT en FROM verse", Drops()))
    with pytest.raises(DataError, match="readonly"):  # data are read, never changed
        list(read_sqlite(member, "DELETE FROM verse", Drops()))
    with pytest.raises(DataError, match="not a database"):
        list(read_sqlite(write(tmp_path / "b.db", "no database, but long enough to look at" * 30), "SELECT a, b FROM c", Drops()))


def test_catalog_pairs_by_key_path(tmp_path: Path) -> None:
    english = write(tmp_path / "en.json", json.dumps({"a": {"b": "Yes", "list": ["One"]}, "only": "English"}))
    target = write(tmp_path / "es.json", json.dumps({"a": {"b": "Sí", "list": ["Uno"]}, "other": "Otro", "number": 3}))
    drops = Drops()
    assert [row.texts for row in read_catalog(english, target, drops)] == [("Yes", "Sí"), ("One", "Uno")]
    assert sorted(reason for reason, _ in drops) == ["no English text", "no translation"]
    with pytest.raises(DataError, match=r"x\.json is not JSON.*line 1"):
        list(read_catalog(english, write(tmp_path / "x.json", "{"), Drops()))


PO = r'''
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#. Default: "Save the \"file\""
msgid "label_save"
msgstr "Guardar el \"fichero\""

msgctxt "verb"
msgid "Open"
msgstr "Abrir"
msgctxt "adjective"
msgid "Open"
msgstr "Abierto"

#, fuzzy
msgid "Old"
msgstr "Nuevo"

#: a.py:3
msgid "%d day"
msgid_plural "%d days"
msgstr[0] "%d "
"día"
msgstr[1] "%d días"

msgid "Todo"
msgstr ""

#~ msgid "gone"
#~ msgstr "ido"

msgid "label_color"
msgstr "Color"
'''


def test_po(tmp_path: Path) -> None:
    drops = Drops()
    rows = [row.texts for row in read_gettext(None, write(tmp_path / "a.po", PO), drops)]
    assert rows == [('Save the "file"', 'Guardar el "fichero"'), ("Open", "Abrir"), ("Open", "Abierto"), ("%d day", "%d día")]
    assert sorted(reason for reason, _ in drops) == ["fuzzy translation", "message id is not text", "no translation"]
    with pytest.raises(DataError, match=r"b\.po, line 2 is not gettext"):
        list(read_gettext(None, write(tmp_path / "b.po", 'msgid "a"\nnonsense "b"\n'), Drops()))
    with pytest.raises(DataError, match="line 1 has broken quotes"):
        list(read_gettext(None, write(tmp_path / "c.po", 'msgid "a\n'), Drops()))


def test_mo_is_read_as_the_standard_library_reads_it(tmp_path: Path, make_mo: Callable[..., bytes]) -> None:
    import gettext
    import io

    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "menu\x04Close": "Cerrar",
                "%d file\x00%d files": "%d archivo\x00%d archivos", "Hello": "Hola"}
    for order in "<>":
        raw = make_mo(messages, order=order)
        assert gettext.GNUTranslations(io.BytesIO(raw)).pgettext("menu", "Close") == "Cerrar"  # the helper makes a true .mo
        rows = [row.texts for row in read_gettext(None, write(tmp_path / "a.mo", raw), Drops())]
        assert sorted(rows) == [("%d file", "%d archivo"), ("Close", "Cerrar"), ("Hello", "Hola")]
    with pytest.raises(DataError, match="magic"):
        list(read_gettext(None, write(tmp_path / "b.mo", "text"), Drops()))
    with pytest.raises(DataError, match=r"cut short|damaged"):
        list(read_gettext(None, write(tmp_path / "c.mo", raw[:-20]), Drops()))


def test_gettext_takes_english_from_the_english_catalogue(tmp_path: Path, make_mo: Callable[..., bytes]) -> None:
    english = write(tmp_path / "en.mo", make_mo({"greeting_text": "Good morning"}))
    target = write(tmp_path / "es.mo", make_mo({"greeting_text": "Buenos días"}))
    assert [row.texts for row in read_gettext(english, target, Drops())] == [("Good morning", "Buenos días")]
