"""Digests of files: by content, and large ones read once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from transllm.digests import file_digest

LARGE = b"0123456789abcdef" * 2**18  # as large as what is remembered
OLD = 1_000_000_000 * 10**9


@pytest.fixture
def large(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_bytes(LARGE)
    os.utime(file, ns=(OLD, OLD))
    return file


def _remembered(cache: Path) -> dict[str, list[object]]:
    found: dict[str, list[object]] = json.loads((cache / "digests.json").read_text())
    return found


@pytest.mark.parametrize("content", [b"", b"a line\n", LARGE], ids=["empty", "small", "large"])
def test_it_is_that_of_the_content(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_digest(file, cache=tmp_path / "cache") == expected
    copy = tmp_path / "copy"
    copy.write_bytes(content)
    assert file_digest(copy, cache=tmp_path / "cache") == expected


def test_a_large_file_is_read_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = file_digest(large, cache=tmp_path)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
    assert file_digest(large, cache=tmp_path) == first
    assert list(_remembered(tmp_path)) == [str(large)]


def test_a_large_file_that_changed_is_read_again(large: Path, tmp_path: Path) -> None:
    first = file_digest(large, cache=tmp_path)
    large.write_bytes(LARGE[::-1])
    os.utime(large, ns=(OLD + 1, OLD + 1))
    assert file_digest(large, cache=tmp_path) == hashlib.sha256(LARGE[::-1]).hexdigest() != first


def test_what_was_just_written_is_not_remembered(large: Path, tmp_path: Path) -> None:
    """It could be written again within one tick of a coarse clock."""
    os.utime(large)
    file_digest(large, cache=tmp_path)
    assert not (tmp_path / "digests.json").exists()


def test_files_that_are_gone_are_forgotten(large: Path, tmp_path: Path) -> None:
    file_digest(large, cache=tmp_path)
    other = large.rename(tmp_path / "moved.txt")
    file_digest(other, cache=tmp_path)
    assert list(_remembered(tmp_path)) == [str(other)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"other": 1}'])
def test_a_torn_memory_is_made_anew(large: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "digests.json").write_bytes(content)
    assert file_digest(large, cache=tmp_path) == hashlib.sha256(LARGE).hexdigest()
    assert str(large) in _remembered(tmp_path)


def test_a_cache_that_cannot_be_written_costs_time_only(large: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert file_digest(large, cache=tmp_path / "cache") == hashlib.sha256(LARGE).hexdigest()
