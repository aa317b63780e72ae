"""C compiled by the machine's own compiler when it is first needed, kept in the user's cache, and loaded.

A wheel cannot hold these libraries: they are for the very processor that they run on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 120.0  # for one run of the compiler
# Not -ffast-math: it takes it that there is no NaN and no infinity, which are what guards look for, and older compilers link start-up
# code to such a library that flushes small numbers to zero in the whole process.
_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")


class NativeError(Exception):
    """There will be no library. No error of the user's: callers fall back to torch's own kernels."""


def load(source: Path, *, folder: Path | None = None) -> ctypes.CDLL:
    """Compile C unless that was done before, and load it.

    Args:
        source: a .c file; the headers beside it belong to it.
        folder: where libraries are kept; None is ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``transllm/native``. Where it cannot be
            written, or nothing in it may be loaded, the library is this process's own.

    Raises:
        NativeError: there is no compiler, it refuses the source, or the library can be written or loaded nowhere; says what, on one line.
    """
    compiler = _compiler()
    version = _version(compiler)
    flags = _flags(version)
    name = f"{source.stem}-{_digest(source, compiler, version, flags)}.so"
    kept = _kept(folder, name)
    if kept is not None:
        with contextlib.suppress(OSError):  # it is not there, or torn
            return ctypes.CDLL(str(kept))
    try:
        # Not in the folder: a compiler cut short by a full disk, or by a kill, leaves nothing there. What is loaded may be removed.
        with tempfile.TemporaryDirectory(prefix="transllm-native-", ignore_cleanup_errors=True) as private:
            built = Path(private) / name
            _compile([*compiler, *flags, str(source), "-o", str(built), "-lm"], source, private)
            if kept is not None:
                with contextlib.suppress(OSError):  # the folder cannot be written, or its file system runs no programs
                    _keep(built, kept)
                    return ctypes.CDLL(str(kept))
            return ctypes.CDLL(str(built))
    except OSError as error:
        raise NativeError(_line(f"the library of {source.name} cannot be written or loaded: {error}")) from error


def _compiler() -> list[str]:
    """The compiler's path, and the arguments that the user gives it."""
    asked = os.environ.get("CC", "")
    try:
        words = shlex.split(asked)
    except ValueError as error:
        raise NativeError(_line(f"$CC is no command line ({error}): {asked}")) from error
    for name in words[:1] or _COMPILERS:
        if path := shutil.which(name):
            return [path, *words[1:]]
    raise NativeError(_line(f"no C compiler: $CC is {asked}, which is not found" if words
                            else f"no C compiler: $CC is not set, and none of {', '.join(_COMPILERS)} is on PATH"))


def _flags(version: str) -> list[str]:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    # What GCC makes of OpenMP runs on the threads that torch has already; clang's would bring its own (threads.h).
    return [native, *_FLAGS, *(["-fopenmp"] if "Free Software Foundation" in version else [])]


def _digest(source: Path, compiler: Sequence[str], version: str, flags: Sequence[str]) -> str:
    """Of all that decides what the library is, and where it runs: a home folder may be shared by unlike machines."""
    parts = [*flags, os.path.realpath(compiler[0]), *compiler[1:], version, *_processor()]
    try:
        for file in [source, *sorted(source.parent.glob("*.h"))]:
            parts += [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
    except OSError as error:
        raise NativeError(_line(f"{source.name} cannot be read: {error}")) from error
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _version(compiler: Sequence[str]) -> str:
    try:
        status, text, errors = _run([*compiler, "--version"], {})
    except OSError as error:
        raise NativeError(_line(f"the C compiler cannot be run: {error}")) from error
    if status:
        raise NativeError(_line(f"{compiler[0]} --version failed: {_telling(errors, status)}"))
    return text


def _processor() -> list[str]:
    """What the processor can do, in words whose order means nothing."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = (part.strip() for part in line.partition(":"))
                if not key and found:  # the second of hundreds of processors, perhaps
                    break
                found.setdefault(key, value)
    except OSError:  # not Linux
        return [platform.machine(), platform.processor()]
    able = found.get("flags") or found.get("Features") or ""
    return [platform.machine(), found.get("model name", ""), *sorted(set(able.split()))]


def _kept(folder: Path | None, name: str) -> Path | None:
    """Where the library is kept; None where the user has no home."""
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        try:
            folder = (cache if cache.is_absolute() else Path.home() / ".cache") / "transllm" / "native"
        except RuntimeError:
            return None
    return folder.absolute() / name  # a name without a folder would be looked for among the system's libraries


def _compile(command: Sequence[str], source: Path, temporary: str) -> None:
    status, _, errors = _run(command, {"TMPDIR": temporary})  # the compiler's own temporary files go with ours
    if status:
        raise NativeError(_line(f"{command[0]} cannot compile {source.name}: {_telling(errors, status)}"))


def _keep(built: Path, kept: Path) -> None:
    """Copy the library to where it is kept, whole or not at all, while others do the same.

    The temporary name is not made of the process's number: processes of several machines, or containers, may share the folder. And it is
    on the disk before it gets its name: a library that a power cut tore may kill those that load it.
    """
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=kept.parent)
    try:
        with open(handle, "wb") as file:
            file.write(built.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, kept)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """The status, output and errors of a compiler, in English; a group of its own, so that what it has started is ended with it."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                          errors="replace", env={**os.environ, "LC_ALL": "C", **environment}, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=_SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NativeError(_line(f"{command[0]} took more than {_SECONDS:g} s")) from error
            raise
    return process.returncode, output, errors


def _telling(errors: str, status: int) -> str:
    """The line of a compiler's errors that says what is wrong."""
    lines = [line for line in errors.splitlines() if line.strip()] or [f"exit status {status}"]
    return next((line for line in lines if "error" in line.lower()), lines[0])


def _line(text: str) -> str:
    return " ".join(text.split())
