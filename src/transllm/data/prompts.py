"""English prompts for recovery: the library's own, those of a source, and the filter for prompts that a model or a file gives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from transllm.data.filters import clean
from transllm.data.language import is_language
from transllm.data.near import NearDuplicates
from transllm.data.types import Counts, MissingSourceError, SourceReport
from transllm.errors import DataError
from transllm.languages import Language
from transllm.recipe.schema import Source

# What belongs to a chat template or to a transcript, and not into a user's turn.
_SPECIAL = re.compile("|".join((
    r"<\|[^|<>]{1,40}\|>", r"</?s>", r"<(?:unk|pad|bos|eos|EN|RESPONSE|start_of_turn|end_of_turn)>", r"\[/?INST\]",
    r"<</?SYS>>", r"###\s*(?:Instruction|Response|Input|Human|Assistant)\b",
    r"^(?:system|user|assistant|human|ai)\s*[:\n]", r"\{\{", r"\}\}",
    r"\n\s*(?:User|Assistant|Human|AI)\s*:")), re.IGNORECASE)
_MODEL = r"an? (?:ai|language model|large language model|virtual assistant|helpful assistant)\b"
# How an assistant begins its turn: a model that is to write a user's turn sometimes slips into its own.
_ANSWER = re.compile("|".join((
    r"(?:sure|certainly|of course|absolutely)[,!.:]", r"(?:sure|certainly) thing\b", r"great (?:question|choice)\b",
    r"you(?:'re| are) welcome",
    r"(?:hello|hi|hey)\b[^.?\n]{0,30}[!.,] how (?:can|may) i (?:help|assist)", r"how (?:can|may) i (?:help|assist) you",
    rf"i(?:'m| am) (?:happy|glad|pleased|here|delighted|sorry|{_MODEL})", r"i(?:'d| would) be (?:happy|glad|delighted)\b",
    r"i(?:'ll| will) (?:help|assist) you", rf"as {_MODEL}", r"i (?:can|could) (?:help|assist) you",
    r"here(?:'s| is| are) (?:a|an|the|some|my|your|one|two|three|four|five|ten)\b",
    r"thank you for (?:your|the) (?:question|patience|request)",
    r"to (?:answer your question|help you)\b", r"let me (?:help|explain)\b")), re.IGNORECASE)
_WORD = re.compile(r"\w+(?:['\u2019]\w+)?")


def read_lines(text: str) -> list[str]:
    """The prompts of a text file: one a line; empty lines and lines that begin with "# " (comments) are left out.

    "#" without a space is kept: "#hashtag ideas for a bakery" is a prompt.
    """
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ") and line.strip() != "#"]


def seed_prompts() -> list[str]:
    """The library's own English prompts, in the order of the file."""
    return read_lines(resources.files("transllm.data").joinpath("seed_prompts.txt").read_text(encoding="utf-8"))


@dataclass(slots=True)
class PromptFilter:
    """Keeps prompts that a person could have asked, once each. Call it with a prompt; it counts.

    Attributes:
        max_words: longer ones are pasted text, and leave the answer no room.
        counts: kept, and dropped by reason.
        near: the prompts before: another that shares four fifths of its words with one of them is a duplicate.
    """

    max_words: int = 200
    min_words: int = 2
    check_language: bool = True
    counts: Counts = field(default_factory=Counts)
    near: NearDuplicates = field(default_factory=NearDuplicates, repr=False)

    def __call__(self, prompt: str) -> str | None:
        """The clean prompt, or None for one that is dropped (see ``counts``)."""
        text = clean(prompt)
        reason = self._reason(text)
        if reason is None:
            self.counts.keep()
            return text
        self.counts.drop(reason)
        return None

    def _reason(self, text: str) -> str | None:
        words = [word.casefold() for word in _WORD.findall(text)]
        if not text:
            return "empty"
        if len(words) < self.min_words:
            return "too short"
        if len(words) > self.max_words:
            return "too long"
        if _SPECIAL.search(text):
            return "template tokens"
        if _ANSWER.match(text.lstrip("\"'*# ").replace("\u2019", "'")):
            return "an answer, not a request"
        if _repeats(words):
            return "repetition"
        # A low bar: on five words an identifier is unsure between English and everything else.
        if self.check_language and not is_language(text, "en", threshold=0.25):
            return "not English"
        return "duplicate" if self.near.known(text) else None


def _repeats(words: list[str]) -> bool:
    """Whether a prompt runs in a circle: under 40 % different words, or a run of three words four times over."""
    if len(words) < 12:
        return len(words) >= 4 and len(set(words)) == 1
    if len(set(words)) < 0.4 * len(words) and len(words) < 100:
        return True
    runs: dict[tuple[str, ...], int] = {}
    for start in range(len(words) - 2):
        run = tuple(words[start:start + 3])
        runs[run] = runs.get(run, 0) + 1
    return max(runs.values()) >= 4


def read_prompts(source: Source, *, side: Literal["english", "target"], language: Language, folder: Path,
                 cache: Path | None = None, max_broken: float = 0.05, report: SourceReport | None = None) -> list[str]:
    """User turns of a source: lines of a text file without its comments, or rows of any other format.

    A document filter would drop "Hello!", and a comment is no prompt; so prompts are not read as documents.

    Args:
        max_broken: a larger share of rows that cannot be read (broken JSON, a column that is missing or no text) is an error.
        report: gets the counts of rows, and the places of the first broken ones.

    Raises:
        MissingSourceError: the source is not there and not optional.
        DataError: it is not what the recipe says, or too much of it is broken.
    """
    from transllm.data.origins import Place, raw_rows

    report = report if report is not None else SourceReport(source.origin, source.licence)
    texts = []
    try:
        for row in raw_rows(source, wanted="documents", language=language, place=Place(folder, cache), report=report):
            report.counts.keep()
            texts.append(row.texts[0 if side == "english" else -1])
    except MissingSourceError as problem:
        if not source.optional or report.counts.read:
            raise
        report.missing = str(problem)
    broken = report.counts.read - report.counts.kept
    if broken > max_broken * report.counts.read:
        places = "; ".join(f"{reason}: {', '.join(found)}" for reason, found in report.places.items())
        raise DataError(f"{broken:,} of {report.counts.read:,} prompts of {report.origin} are broken (the first, {places}), more than "
                        f"{max_broken:.1%}. Mend them (for prompts of recover, recover.max_broken says how many may be).")
    return [prompt for text in texts for prompt in _turns(source, text)]


def _turns(source: Source, text: str) -> list[str]:
    """A line of a text file is a turn unless it is a comment; a row of another format is one turn, of any number of lines."""
    names = [source.files] if isinstance(source.files, str) else source.files or [source.pattern or ""]
    return read_lines(text) if source.format == "txt" or all(name.endswith(".txt") for name in names) else [text]
