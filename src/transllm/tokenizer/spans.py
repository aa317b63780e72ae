"""One tokenizer for text in two languages: each span is encoded in the vocabulary of its own language.

English spans take the original vocabulary, so that the model reads and writes English exactly as it learned to; target spans
take the extended one. Ids of both live in one id space. Nothing in a text is ever read as a special token: a typed ``<EN>`` is
four letters and signs, and only code places markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transllm.errors import ModelError
from transllm.languages import Language
from transllm.tokenizer.backend import continuing_backend, first_space, plain_backend, plain_ids
from transllm.tokenizer.extend import id_limit, load_tokenizer, save_tokenizer
from transllm.tokenizer.family import family_of
from transllm.tokenizer.modelfile import extended_model_file, model_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ENGLISH_MARKER = "<EN>"
RESPONSE_MARKER = "<RESPONSE>"
_ORIGINAL = "original_tokenizer"
_VOCABULARY = "vocabulary.json"


def marker_texts(language: Language) -> list[str]:
    """The markers that a model for this language needs, in the order of :class:`Markers`."""
    return [ENGLISH_MARKER, RESPONSE_MARKER, language.marker]


@dataclass(frozen=True, slots=True)
class Markers:
    """Token ids of the markers.

    Attributes:
        english: ``<EN>``, opens the query in English.
        response: ``<RESPONSE>``, opens the answer in English.
        target: ``<XX>``, opens the answer in the target language.
    """

    english: int
    response: int
    target: int


class SpanTokenizer:
    """Original and extended tokenizer side by side.

    Attributes:
        original, extended: the Hugging Face tokenizers.
        language: the target language.
        markers: ids of the markers.
        pad_id: id of the pad token, never the end of sequence.
        original_size: ids below it are the original's.
        size: length of the extended tokenizer.
    """

    def __init__(self, original: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast, language: Language) -> None:
        """Raises ModelError if the second tokenizer is not an extension of the first, or lacks a marker or a pad token."""
        family_of(original)
        self.original, self.extended, self.language = original, extended, language
        self.original_size, self.size = id_limit(original), len(extended)
        old, new = original.get_vocab(), extended.get_vocab()
        if any(new.get(token) != token_id for token, token_id in old.items()):
            raise ModelError("The extended tokenizer is not an extension of the original one: an old id means another token. "
                             "Take both from the same extend stage.")
        missing = [text for text in marker_texts(language) if text not in new]
        if missing:
            raise ModelError(f"The extended tokenizer lacks the marker {', '.join(missing)}. "
                             f"Extend the original tokenizer for {language.name}.")
        self.markers = Markers(*(new[text] for text in marker_texts(language)))
        if extended.pad_token_id is None or extended.pad_token_id == extended.eos_token_id:
            raise ModelError("The extended tokenizer has no pad token of its own. Run the extend stage again.")
        self.pad_id: int = extended.pad_token_id
        self._english, self._target = plain_backend(original), plain_backend(extended)
        self._first_space = first_space(original)
        spaced = self._first_space != "never"
        self._english_on = continuing_backend(original) if spaced else self._english
        self._target_on = continuing_backend(extended) if spaced else self._target
        special = [token.content for token in original.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")

    def encode_english(self, text: str, *, after: str = "") -> list[int]:
        """Ids of an English span: original vocabulary, no special tokens.

        Args:
            text: what to encode.
            after: control text that comes before it in a prompt. A SentencePiece tokenizer puts a space before the first word of a
                text; a message in the middle of a prompt has none.
        """
        return plain_ids(self._english if self._begins(after) else self._english_on, [text])[0]

    def encode_target(self, text: str, *, after: str = "") -> list[int]:
        """Ids of a target-language span: extended vocabulary, no special tokens. ``after`` as in :meth:`encode_english`."""
        return plain_ids(self._target if self._begins(after) else self._target_on, [text])[0]

    def encode_control(self, text: str, *, after: str = "") -> list[int]:
        """Ids of a chat template's own text: control tokens are what they look like. ``after``: any text that comes before it."""
        found = self._special.search(text)
        plain_end = 0 if self._begins(after) else found.start() if found else len(text)
        head = plain_ids(self._english_on, [text[:plain_end]])[0] if plain_end else []
        return head + (list(self.original(text[plain_end:], add_special_tokens=False)["input_ids"]) if plain_end < len(text) else [])

    def _begins(self, after: str) -> bool:
        """Whether a text that comes after this one begins as a text of its own does."""
        if not after or self._first_space == "never":
            return True
        return self._first_space == "always" and any(found.end() == len(after) for found in self._special.finditer(after))

    def encode_english_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """:meth:`encode_english` of each text, in parallel."""
        return plain_ids(self._english, texts)

    def encode_target_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """:meth:`encode_target` of each text, in parallel."""
        return plain_ids(self._target, texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids of either language; special tokens are skipped, bytes that are not UTF-8 become U+FFFD."""
        text: str = self._target.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, folder: Path | str) -> None:
        """Write the extended tokenizer's files at the top of the folder, the original's in ``original_tokenizer``."""
        folder = Path(folder)
        save_tokenizer(self.extended, folder)
        save_tokenizer(self.original, folder / _ORIGINAL)
        self._save_model_file(folder)
        (folder / _VOCABULARY).write_text(json.dumps(self._facts(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, *, language: Language | None = None) -> SpanTokenizer:
        """Read what :meth:`save` wrote. ``language`` defaults to the one it was saved with.

        Raises:
            ModelError: files are missing, or say otherwise than ``vocabulary.json``.
        """
        folder = Path(folder)
        try:
            facts: dict[str, Any] = json.loads((folder / _VOCABULARY).read_text(encoding="utf-8"))
            loaded = cls(load_tokenizer(folder / _ORIGINAL), load_tokenizer(folder), language or Language(**facts["language"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"The folder {folder} does not hold a complete extended tokenizer ({error}). "
                             f"Run the extend stage again.") from error
        found = loaded._facts()
        wrong = [key for key in ("original_size", "size", "markers", "pad_id") if facts.get(key) != found[key]]
        if wrong:
            raise ModelError(f"The tokenizer in {folder} does not agree with its {_VOCABULARY} on {', '.join(wrong)}. "
                             f"Run the extend stage again.")
        return loaded

    def _save_model_file(self, folder: Path) -> None:
        """Beside ``tokenizer.json``, the SentencePiece file, if the original has one: other tools read that one."""
        file = model_file(self.original)
        if file is None:
            return
        content = file.read_bytes()
        extended = extended_model_file(self.original, self.extended, content)
        if extended is not None:
            (folder / _ORIGINAL / file.name).write_bytes(content)
            (folder / file.name).write_bytes(extended)

    def _facts(self) -> dict[str, Any]:
        return {"language": asdict(self.language), "original_size": self.original_size, "size": self.size,
                "markers": asdict(self.markers), "pad_id": self.pad_id}
