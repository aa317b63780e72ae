"""Files are whole or absent, and files that grow survive a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from transllm.files import JsonLines, read_jsonl, write_json, write_text


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    write_text(blocked, "old")
    with pytest.raises(OSError):
        write_text(blocked / "inside.txt", "new")
    assert blocked.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"], "nothing temporary is left"


def test_half_a_surrogate_pair_is_written_as_a_reference(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "half a pair: \ud800")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "half a pair: &#55296;"


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert not (tmp_path / "file").exists()


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    with JsonLines(file) as lines:
        lines.write({"a": 1}, {"a": 2})
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"a": 3')
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]
    with JsonLines(file) as lines:
        lines.write({"a": 4})
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}, {"a": 4}]
