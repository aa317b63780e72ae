"""Libraries are compiled once, by the machine's own compiler, and found again; where that cannot be, one line says why."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from transllm.native import build
from transllm.native.build import NativeError, load

SOURCE = Path(build.__file__).parents[2]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler (cc, gcc, clang) on PATH")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder of a test; no compiler of the user's, and none of the user's folders."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source" / "tiny.c"
    file.parent.mkdir()
    (file.parent / "factor.h").write_text("#define FACTOR 2\n")
    file.write_text('#include "factor.h"\nint times(int x) { return FACTOR * x; }\n')
    return file


def _log_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, then: str = "") -> Path:
    """Set a compiler that writes a line for all it compiles; returns where."""
    own = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "false")
    log, script = tmp_path / "log", tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\ncase "$*" in *--version) exec {own} --version;; esac\necho run >> {log}\n{then}\nexec {own} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    log.touch()
    return log


def _runs(log: Path) -> int:
    return len(log.read_text().splitlines())


def _names(folder: Path) -> list[str]:
    """Of libraries, and of all that may have been left beside them."""
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


@needs_compiler
def test_a_second_load_runs_no_compiler(source: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _log_runs(tmp_path, monkeypatch)
    for _ in range(2):
        assert load(source, folder=tmp_path / "kept").times(21) == 42
        assert _runs(log) == 1
    (name,) = _names(tmp_path / "kept")
    assert name.startswith("tiny-") and name.endswith(".so")
    assert _names(temporary) == []
    assert _names(source.parent) == ["factor.h", "tiny.c"]


@needs_compiler
def test_another_header_makes_another_library(source: Path, tmp_path: Path) -> None:
    assert load(source, folder=tmp_path / "kept").times(5) == 10
    (source.parent / "factor.h").write_text("#define FACTOR 3\n")
    assert load(source, folder=tmp_path / "kept").times(5) == 15
    assert len(_names(tmp_path / "kept")) == 2


@needs_compiler
def test_another_processor_compiler_or_flag_makes_another_library(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _log_runs(tmp_path, monkeypatch)
    load(source, folder=tmp_path / "kept")
    with monkeypatch.context() as other:
        other.setattr(build, "_processor", lambda: ["another"])
        load(source, folder=tmp_path / "kept")
    with monkeypatch.context() as other:
        other.setenv("CC", f"{os.environ['CC']} -DARGUMENT='a b'")
        load(source, folder=tmp_path / "kept")
    with monkeypatch.context() as other:
        other.setattr(build, "_version", lambda compiler: "cc 1.0")
        load(source, folder=tmp_path / "kept")
    with monkeypatch.context() as other:
        other.setattr(build, "_FLAGS", (*build._FLAGS, "-DFLAG"))
        load(source, folder=tmp_path / "kept")
    assert _runs(log) == len(_names(tmp_path / "kept")) == 5


@needs_compiler
def test_libraries_are_kept_in_the_users_cache(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(source)
    assert len(_names(tmp_path / "home" / ".cache" / "transllm" / "native")) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load(source)
    assert len(_names(tmp_path / "cache" / "transllm" / "native")) == 1


@needs_compiler
def test_a_user_without_a_home(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert load(source).times(2) == 4


@needs_compiler
def test_a_torn_library_is_compiled_anew(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _log_runs(tmp_path, monkeypatch)
    # Its name is worked out here: a library that this process has loaded once would not be read again.
    compiler = build._compiler()
    version = build._version(compiler)
    name = f"tiny-{build._digest(source, compiler, version, build._flags(version))}.so"
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / name).write_bytes(b"\x7fELF and no more")
    for _ in range(2):
        assert load(source, folder=tmp_path / "kept").times(4) == 8
        assert _runs(log) == 1
    assert _names(tmp_path / "kept") == [name]


@needs_compiler
def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "file").touch()
    library = load(source, folder=tmp_path / "file" / "kept")
    assert _names(temporary) == []
    assert library.times(4) == 8, "works though its file is gone"


@needs_compiler
def test_a_library_that_cannot_be_kept_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert load(source, folder=tmp_path / "kept").times(4) == 8
    assert _names(tmp_path / "kept") == []


@needs_compiler
def test_a_folder_from_which_nothing_may_be_loaded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(path: str) -> str:
        if Path(path).parent == tmp_path / "kept":
            raise OSError("failed to map segment from shared object")
        return path

    monkeypatch.setattr(ctypes, "CDLL", loaded)
    log = _log_runs(tmp_path, monkeypatch)
    for runs in (1, 2):
        assert "transllm-native-" in str(load(source, folder=tmp_path / "kept"))
        assert _runs(log) == runs


@needs_compiler
def test_no_place_at_all(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(NativeError, match=r"^the library of tiny\.c cannot be written or loaded: .*Not a directory.*$"):
        load(source, folder=tmp_path / "file" / "kept")


def test_no_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NativeError, match=r"^no C compiler: \$CC is not set, and none of cc, gcc, clang is on PATH$"):
        load(source, folder=tmp_path / "kept")
    monkeypatch.setenv("CC", "my-cc -v")
    with pytest.raises(NativeError, match=r"^no C compiler: \$CC is my-cc -v, which is not found$"):
        load(source, folder=tmp_path / "kept")
    monkeypatch.setenv("CC", "my-cc '")
    with pytest.raises(NativeError, match=r"^\$CC is no command line \(No closing quotation\): my-cc '$"):
        load(source, folder=tmp_path / "kept")


def test_a_compiler_that_does_not_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho no developer tools >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    with pytest.raises(NativeError, match=r"compiler --version failed: no developer tools$"):
        load(source, folder=tmp_path / "kept")
    script.write_text("#!/no/such/shell\n")
    with pytest.raises(NativeError, match=r"^the C compiler cannot be run: .*No such file"):
        load(source, folder=tmp_path / "kept")


@needs_compiler
def test_a_source_that_the_compiler_refuses(source: Path, tmp_path: Path, temporary: Path) -> None:
    source.write_text("int times(int x) {\n    int unused = 1;\n    return x +;\n}\n")
    with pytest.raises(NativeError, match=r"^\S+ cannot compile tiny\.c: \S*tiny\.c:3:\d+: error: expected[^\n]*$"):
        load(source, folder=tmp_path / "kept")
    assert _names(tmp_path / "kept") == _names(temporary) == []


@needs_compiler
def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"^none\.c cannot be read: .*No such file"):
        load(tmp_path / "none.c", folder=tmp_path / "kept")


@needs_compiler
def test_a_compiler_that_does_not_end(source: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _log_runs(tmp_path, monkeypatch, then=f"touch $TMPDIR/left; (sleep 2; touch {tmp_path / 'survived'}) & wait")
    monkeypatch.setattr(build, "_SECONDS", 1)
    with pytest.raises(NativeError, match=r"compiler took more than 1 s$"):
        load(source, folder=tmp_path / "kept")
    assert _runs(log) == 1
    assert _names(tmp_path / "kept") == _names(temporary) == []
    time.sleep(1.5)
    assert not (tmp_path / "survived").exists(), "what the compiler has started ends with it"


@needs_compiler
def test_several_processes_at_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler waits until it was started four times, so that all have found no library.
    log = tmp_path / "log"
    _log_runs(tmp_path, monkeypatch, then=f"for i in $(seq 400); do [ $(wc -l < {log}) -ge 4 ] && break; sleep 0.1; done")
    program = ("import sys; from pathlib import Path; from transllm.native.build import load; "
               "print(load(Path(sys.argv[1]), folder=Path(sys.argv[2])).times(21))")
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "kept")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
                 for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["42\n"] * 4
    assert _runs(log) == 4
    (name,) = _names(tmp_path / "kept")
    assert name.endswith(".so")


@needs_compiler
def test_numbers_that_guards_look_for_stay(source: Path, tmp_path: Path) -> None:
    source.write_text("int is_nan(double x) { return x != x; }\nint is_infinite(double x) { return x - x != 0; }\n")
    library = load(source, folder=tmp_path / "kept")
    for function in (library.is_nan, library.is_infinite):
        function.argtypes = [ctypes.c_double]
    assert [library.is_nan(x) for x in (float("nan"), 1.0)] == [1, 0]
    assert [library.is_infinite(x) for x in (float("inf"), 1.0)] == [1, 0]
    assert sys.float_info.min / 2 > 0, "the process still has numbers below the smallest normal one"


@pytest.mark.parametrize(("machine", "flag", "other"), [
    ("x86_64", "-march=native", "-mcpu=native"), ("aarch64", "-mcpu=native", "-march=native"), ("arm64", "-mcpu=native", "-march=native"),
])
def test_flags_of_a_machine(machine: str, flag: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    flags = build._flags("gcc 12.2.0 Copyright (C) 2022 Free Software Foundation, Inc.")
    assert flag in flags and other not in flags and "-fopenmp" in flags and "-ffast-math" not in flags
    assert "-fopenmp" not in build._flags("Apple clang version 17.0.0")


def test_what_this_processor_can_do() -> None:
    words = build._processor()
    assert words[0] == platform.machine()
    assert words == build._processor()
    if platform.machine() == "x86_64" and sys.platform == "linux":
        assert "sse2" in words
