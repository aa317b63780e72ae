"""The peers' environments: one for each, of pinned packages, installed once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

PINS = Path(__file__).resolve().parent
# For images and sound. Text needs neither, but what is installed is imported, and PyPI has both for torch with CUDA only.
_UNUSED = {"llamafactory": ("torchvision", "torchaudio")}


def python_of(peer: str, envs: Path) -> Path | None:
    """The interpreter of a peer's environment, installed if it is not there with these very pins.

    Args:
        peer: a file of pins beside this one.
        envs: where environments lie; ``NAME.pins`` beside the folder says which pins it was made with.

    Returns:
        None if it cannot be installed; why was printed.
    """
    pins, folder, mark = PINS / f"{peer}.txt", envs / peer, envs / f"{peer}.pins"
    wanted = f"{hashlib.sha256(pins.read_bytes()).hexdigest()[:16]} python {sys.version_info.major}.{sys.version_info.minor}\n"
    python = folder / "bin" / "python"
    if python.exists() and mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {peer} into {folder} (minutes, once)", flush=True)
    try:
        mark.unlink(missing_ok=True)
        envs.mkdir(parents=True, exist_ok=True)
        venv.create(folder, clear=not folder.is_symlink(), with_pip=True)
        problem = _pip(python, "install", "-r", str(pins))
        if not problem and peer in _UNUSED:
            problem = _pip(python, "uninstall", "--yes", *_UNUSED[peer])
    except (OSError, subprocess.CalledProcessError) as error:
        problem = str(error)
    if problem:
        print(f"{peer} CANNOT BE INSTALLED: {problem}. Its figures are null.", flush=True)
        return None
    mark.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, *arguments: str) -> str:
    """Run pip; the last that it said of what went wrong, or nothing."""
    done = subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], capture_output=True, text=True,
                          check=False)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else said[-1] if said else "pip said nothing"
