"""Makers of small wheels and gettext catalogues."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest


def _make_wheel(folder: Path, files: dict[str, bytes], metadata: str = "License: CC0-1.0\n") -> Path:
    info = "some_data-1.2.dist-info"
    members = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: some_data\nVersion: 1.2\n{metadata}".encode(),
               f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    record = "".join(f"{member},,\n" for member in [*members, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "some_data-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, content in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(member, content)
    return wheel


def _place_in_cache(cache: Path, files: dict[str, bytes], metadata: str = "License: CC0-1.0\n") -> Path:
    return _make_wheel(cache / "some-data-1.2", files, metadata)


def _make_mo(messages: dict[str, str], *, order: str = "<") -> bytes:
    """A .mo file as msgfmt writes it."""
    entries = [(key.encode(), value.encode()) for key, value in sorted(messages.items())]
    at_ids = 28
    at_texts = at_ids + 8 * len(entries)
    offset = at_texts + 8 * len(entries)
    tables: list[bytes] = []
    blob = b""
    for part in (0, 1):
        for entry in entries:
            tables.append(struct.pack(f"{order}2I", len(entry[part]), offset + len(blob)))
            blob += entry[part] + b"\x00"
    return struct.pack(f"{order}7I", 0x950412DE, 0, len(entries), at_ids, at_texts, 0, 0) + b"".join(tables) + blob


@pytest.fixture
def make_wheel() -> Callable[..., Path]:
    """(folder, {member: bytes}, metadata) -> the wheel of some-data 1.2."""
    return _make_wheel


@pytest.fixture
def place_in_cache() -> Callable[..., Path]:
    """(cache, {member: bytes}, metadata) -> the same wheel, as if it had been fetched."""
    return _place_in_cache


@pytest.fixture
def make_mo() -> Callable[..., bytes]:
    """({id: translation}, order="<") -> a .mo file."""
    return _make_mo
