"""What a file holds, as a digest of its content: the same for a copy, a checkout and a file that was only touched.

A large file is read once (some 1 GB/s); its digest is then remembered in the cache by its path, size and time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path

from transllm.data.package import default_cache
from transllm.files import write_json

_LARGE = 2**22  # bytes; what is smaller is read each time
_SETTLED = 2.0  # seconds; a file that was just written could be written again within one tick of a coarse clock


def file_digest(file: Path, *, cache: Path | None = None) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Args:
        file: must exist.
        cache: where digests of large files are remembered; None is the user's cache.

    Raises:
        OSError: it cannot be read.
    """
    status = file.stat()
    if status.st_size < _LARGE:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    memory = (cache or default_cache()) / "digests.json"
    known = _remembered(memory)
    name, state = str(file.resolve()), [status.st_size, status.st_mtime_ns]
    if name in known and known[name][:2] == state:
        return str(known[name][2])
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    after = file.stat()
    if [after.st_size, after.st_mtime_ns] == state and time.time() - after.st_mtime > _SETTLED:
        # Two processes at once can lose each other's entry, which is then read once more; so it is in a cache that cannot be written.
        with contextlib.suppress(OSError):
            write_json(memory, {**{other: entry for other, entry in known.items() if Path(other).exists()}, name: [*state, digest]})
    return digest


def _remembered(memory: Path) -> dict[str, list[int | str]]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or a file that is not ours
        return {}
    return found if isinstance(found, dict) else {}
