"""Apertium, a rule-based translator, where it is installed (``apt-get install apertium-eng-spa`` gives English-Spanish)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Literal

from transllm.errors import DataError, ModelError
from transllm.languages import Language
from transllm.progress import Progress
from transllm.translation.sentences import split_text
from transllm.translation.translator import Translation

# Apertium names its pairs by ISO 639-3; the pairs with English that it has released.
_CODES = {"af": "afr", "ca": "cat", "cy": "cym", "eo": "epo", "es": "spa", "eu": "eus", "gl": "glg", "hi": "hin", "is": "isl", "it": "ita",
          "kk": "kaz", "mk": "mkd", "pt": "por", "sr": "srp", "ur": "urd"}


class ApertiumTranslator:
    """Runs the ``apertium`` command, one process for all sentences of a call.

    Raises:
        ModelError: the command or the language pair is not installed.
    """

    name = "apertium"

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

    def translate(self, texts: Sequence[str], *, to: Literal["english", "target"], progress: Progress, label: str) -> list[Translation]:
        """See ``Translator.translate``."""
        parts = [split_text(text) for text in texts]
        sentences = [sentence for part in parts for sentence in part.sentences]
        direction = f"eng-{self._code}" if to == "target" else f"{self._code}-eng"
        with progress.task(label, len(sentences), "sentences") as bar:
            # -u: no marks on words that it does not know. One line a sentence, so that lines match.
            done = subprocess.run([self._command, "-u", direction], input="\n".join(sentences) + "\n", capture_output=True, text=True,
                                  check=False)
            if done.returncode:
                raise DataError(f"Apertium failed: {done.stderr.strip() or done.returncode}. "
                                f"Try it by hand: echo hello | apertium {direction}")
            lines = done.stdout.rstrip("\n").split("\n") if sentences else []
            if len(lines) != len(sentences):
                raise DataError(f"Apertium gave {len(lines)} lines for {len(sentences)} sentences. Report this with the text, if you can.")
            bar.advance(len(sentences))
        waiting = iter(lines)
        return [Translation(part.join([next(waiting).strip() for _ in part.sentences]), False) for part in parts]
