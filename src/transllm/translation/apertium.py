"""Apertium, a rule-based translator, where it is installed (``apt-get install apertium-eng-spa`` gives English-Spanish)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transllm.errors import DataError, ModelError
from transllm.languages import Language
from transllm.translation.masks import BRACKETS, MaskForm
from transllm.translation.translator import Direction, Translation

# Apertium names its pairs by ISO 639-3; the pairs with English that it has released.
_CODES = {"af": "afr", "ca": "cat", "cy": "cym", "eo": "epo", "es": "spa", "eu": "eus", "gl": "glg", "hi": "hin", "is": "isl", "it": "ita",
          "kk": "kaz", "mk": "mkd", "pt": "por", "sr": "srp", "ur": "urd"}


class ApertiumTranslator:
    """Runs the ``apertium`` command, one process for all sentences of a call.

    Raises:
        ModelError: the command or the language pair is not installed.
    """

    name = "apertium"
    masks: MaskForm | None = BRACKETS
    longest = 600
    whole_lines = False

    def __init__(self, language: Language) -> None:
        command = shutil.which("apertium")
        if command is None:
            raise ModelError("The recipe asks for the translator 'apertium', and there is no such command. Install it with its pair "
                             "(for Spanish: apt-get install apertium-eng-spa), or set bridge.translator to 'self'.")
        self._command, self._code = command, _CODES.get(language.code, language.code)
        listed = subprocess.run([command, "-l"], capture_output=True, text=True, check=False).stdout.split()
        missing = {f"eng-{self._code}", f"{self._code}-eng"} - set(listed)
        if missing:
            raise ModelError(f"Apertium is installed without the direction {', '.join(sorted(missing))}. Install the pair of English and "
                             f"{language.name}, or set bridge.translator to 'self'.")
        self.identity: dict[str, Any] = {"pair": self._code, "version": self._versions()}

    def sentences(self, sentences: Sequence[str], *, to: Direction) -> Iterator[tuple[int, Translation]]:
        """See ``SentenceTranslator.sentences``."""
        direction = f"eng-{self._code}" if to == "target" else f"{self._code}-eng"
        # -u: no marks on words that it does not know. An empty line between two sentences: over a single line break, its rules go on.
        done = subprocess.run([self._command, "-u", direction], input="\n\n".join(sentences) + "\n", capture_output=True, text=True,
                              check=False)
        if done.returncode:
            raise DataError(f"Apertium failed: {done.stderr.strip() or done.returncode}. Try it by hand: echo hello | apertium {direction}")
        lines = done.stdout.rstrip("\n").split("\n\n")
        if len(lines) != len(sentences):
            raise DataError(f"Apertium gave {len(lines)} sentences for {len(sentences)} sentences. Report this with the text, if you can.")
        yield from ((index, Translation(line.strip(), False)) for index, line in enumerate(lines))

    def close(self) -> None:
        """Nothing is held."""

    def _versions(self) -> list[str]:
        """Of the program, and the sizes and times of the pair's files: a pair has a version of its own, which no command tells."""
        found = [subprocess.run([self._command, "-V"], capture_output=True, text=True, check=False).stdout.strip()]
        modes = Path(self._command).resolve().parent.parent / "share" / "apertium" / "modes"
        for mode in (modes / f"eng-{self._code}.mode", modes / f"{self._code}-eng.mode"):
            files = [Path(name) for name in re.findall(r"'([^']+)'", mode.read_text(encoding="utf-8"))] if mode.is_file() else []
            found += [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.is_file()]
        return found
