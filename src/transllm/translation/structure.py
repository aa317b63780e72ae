"""Texts through a translator of sentences, with their structure: masked, translated, restored, verified.

A sentence with protected pieces is translated in steps, until all of it is there again:

1. with masks for the pieces (where the translator has a form that it leaves alone);
2. with masks for the numbers too;
3. cut at the pieces: what stands between them is translated, piece by piece;
4. cut at the numbers too.

What is still missing then is in ``Translation.lost``; nothing is put where the translator did not put it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from transllm.progress import Progress
from transllm.translation.cache import TranslationCache
from transllm.translation.masks import MaskForm
from transllm.translation.protected import FIRST_PLACE, lost_structure, with_numbers_of, without_private
from transllm.translation.sentences import Sentence, split_text
from transllm.translation.translator import Direction, SentenceTranslator, Translation

_PLACE = f"[{chr(FIRST_PLACE)}-\U0010ffff]"
_AT_PLACES = re.compile(f"({_PLACE})")
_AT_NUMBERS = re.compile(rf"({_PLACE}|\d+(?:[.,:]\d+)*)")
_LETTER = re.compile(r"[^\W\d_]")
# Of a part: marks that close what stood before, and marks that open what comes after (those of bold after a blank only).
_EDGES = re.compile(r"^([*_~]*[\s,;:.!?)\]}%/-]*)(.*?)(\s[(\[{*_~]*|[\s(\[{/-]*)$", re.DOTALL)
_END = re.compile(r"[.!?…。！？]$")
Translate = Callable[[str], Translation]


class TextTranslator:
    """A ``Translator`` of whole texts, made of a translator of sentences.

    Args:
        sentences: the translator.
        cache: what was translated before. None: all is translated anew.
        protect: keep the structure; False sends each sentence as it is, to measure the translator alone.
        capitals: the target language writes its nouns with capitals, so a capital at the beginning of a part is left.
    """

    def __init__(self, sentences: SentenceTranslator, *, cache: TranslationCache | None = None, protect: bool = True,
                 capitals: bool = False) -> None:
        self._translator, self._cache, self._protect, self._capitals = sentences, cache, protect, capitals
        self.name = sentences.name

    def translate(self, texts: Sequence[str], *, to: Direction, progress: Progress, label: str) -> list[Translation]:
        """See ``Translator.translate``. Equal sentences are translated once."""
        kind = self._translator
        parts = [split_text(text, longest=kind.longest, whole_lines=kind.whole_lines, protect=self._protect) for text in texts]
        waiting = list(dict.fromkeys(sentence for part in parts for sentence in part.sentences))
        done: dict[Sentence, Translation] = {}
        known: dict[str, Translation] = {}
        steps = self._steps(to)
        for number, step in enumerate(steps):
            needed = dict.fromkeys(text for sentence in waiting for text in step.texts(sentence))
            self._fetch([text for text in needed if text not in known], known, to=to, progress=progress,
                        label=f"{label}, in pieces" if number else label)
            for sentence in waiting:
                made = step.build(sentence, known.__getitem__)
                if not made.lost or step is steps[-1]:
                    done[sentence] = made
            waiting = [sentence for sentence in waiting if sentence not in done]
        return [self._joined(text, part.join([done[sentence].text for sentence in part.sentences]),
                             [done[sentence] for sentence in part.sentences]) for text, part in zip(texts, parts, strict=True)]

    def close(self) -> None:
        """Give back what the translator holds: memory, connections."""
        self._translator.close()

    def _steps(self, to: Direction) -> list[_Step]:
        if not self._protect:
            return [_AsItIs()]
        form, capitals = self._translator.masks, self._capitals and to == "target"
        masked: list[_Step] = [_Masked(form, numbers=False), _Masked(form, numbers=True)] if form else []
        return [*masked, _InPieces(form, _AT_PLACES, capitals), _InPieces(form, _AT_NUMBERS, capitals)]

    def _fetch(self, texts: Sequence[str], known: dict[str, Translation], *, to: Direction, progress: Progress, label: str) -> None:
        """Translate what the cache does not know."""
        if not texts:
            return
        with progress.task(label, len(texts), "sentences") as bar:
            if self._cache is not None:
                found = self._cache.get(texts, to=to, translator=self._translator)
                known |= found
                bar.advance(len(found))
                texts = [text for text in texts if text not in found]
            made = self._translator.sentences(texts, to=to) if texts else iter(())
            if self._cache is not None:
                made = self._cache.keep(texts, made, to=to, translator=self._translator)
            for index, translation in made:
                known[texts[index]] = translation
                bar.advance(1)
            missing = [text for text in texts if text not in known]
        assert not missing, f"{self.name} did not translate {missing[:3]}"

    def _joined(self, source: str, text: str, sentences: Iterable[Translation]) -> Translation:
        sentences = list(sentences)
        lost = [piece for sentence in sentences for piece in sentence.lost]
        if self._protect and not lost:
            lost = list(lost_structure(source, text))
        return Translation(text, any(sentence.cut for sentence in sentences), tuple(lost))


class _Step(Protocol):
    """One way to translate a sentence with pieces in it."""

    def texts(self, sentence: Sentence) -> list[str]:
        """What the translator gets."""
        ...

    def build(self, sentence: Sentence, translate: Translate) -> Translation:
        """The sentence from what it gave; ``lost`` names what is missing."""
        ...


class _AsItIs:
    def texts(self, sentence: Sentence) -> list[str]:
        return [sentence.text]

    def build(self, sentence: Sentence, translate: Translate) -> Translation:
        return translate(sentence.text)


@dataclass(frozen=True)
class _Masked:
    form: MaskForm
    numbers: bool

    def texts(self, sentence: Sentence) -> list[str]:
        return [self.form.write(self._own(sentence).text)]

    def build(self, sentence: Sentence, translate: Translate) -> Translation:
        sentence = self._own(sentence)
        made = translate(self.form.write(sentence.text))
        text = self.form.read(sentence.text, _one_line(made.text))
        if text is None:
            return Translation(made.text, made.cut, sentence.pieces)
        return _verified(sentence, _close(sentence.text, text), made.cut)

    def _own(self, sentence: Sentence) -> Sentence:
        """The sentence with the pieces that it has a mask for."""
        return _with_numbers_hidden(sentence) if self.numbers else sentence


@dataclass(frozen=True)
class _InPieces:
    form: MaskForm | None
    cut_at: re.Pattern[str]
    capitals: bool

    def texts(self, sentence: Sentence) -> list[str]:
        return [self._sent(body) for _, body, _ in self._parts(sentence) if body]

    def build(self, sentence: Sentence, translate: Translate) -> Translation:
        parts = self._parts(sentence)
        built, cut = [], False
        for before, body, after in parts:
            text = ""
            if body:
                made = translate(self._sent(body))
                cut |= made.cut
                text = self._came(made.text)
                if not text:
                    return Translation("", cut, (body,))
                text = text if len(parts) == 1 else _as_part(body, text, self.capitals)
            built += [before, text, after]
        return _verified(sentence, "".join(built), cut)

    def _parts(self, sentence: Sentence) -> list[tuple[str, str, str]]:
        """What stays, what is translated (or nothing), what stays."""
        parts = self.cut_at.split(sentence.text)
        if len(parts) == 1:
            return [("", sentence.text, "")]
        found = []
        for number, part in enumerate(parts):
            edges = _EDGES.match(part)
            assert edges is not None, "the expression matches any text"
            before, body, after = edges.groups()
            found.append((before, body, after) if number % 2 == 0 and _LETTER.search(body) else (part, "", ""))
        return found

    def _sent(self, body: str) -> str:
        return self.form.write(body) if self.form else body

    def _came(self, text: str) -> str:
        return (self.form.read("", _one_line(text)) or "") if self.form else _one_line(text)


def _with_numbers_hidden(sentence: Sentence) -> Sentence:
    """The sentence with its numbers among its pieces."""
    parts = _AT_NUMBERS.split(sentence.text)
    hidden = [chr(FIRST_PLACE + number // 2) if number % 2 else part for number, part in enumerate(parts)]
    return Sentence("".join(hidden), tuple(sentence.restore(part) for part in parts[1::2]))


def _as_part(source: str, text: str, capitals: bool) -> str:
    """A part of a sentence that came back as a sentence of its own, as a part again: no capital and no full stop that it had not."""
    if not _END.search(source):
        text = text.rstrip(".。")
    if not capitals and source[0].islower() and text[:1].isupper() and not text[1:2].isupper():
        text = text[0].lower() + text[1:]
    return text


def _verified(sentence: Sentence, text: str, cut: bool) -> Translation:
    """The translation with its pieces and numbers in the source's form, and what is missing."""
    if not text.strip():
        return Translation("", cut, (sentence.restore(sentence.text),))
    text, missing = with_numbers_of(sentence.text, text)
    restored = sentence.restore(text)
    return Translation(restored, cut, tuple(missing) or lost_structure(sentence.restore(sentence.text), restored))


def _close(source: str, text: str) -> str:
    """No blanks between a piece and the punctuation around it, where the source has none."""
    for one, two in pairwise(source):
        if ord(one) >= FIRST_PLACE and two in ",.;:!?)]}”\"%":
            text = re.sub(rf"{re.escape(one)}\s+(?={re.escape(two)})", one, text)
        elif ord(two) >= FIRST_PLACE and one in "([{“\"":
            text = re.sub(rf"(?<={re.escape(one)})\s+{re.escape(two)}", two, text)
    return text


def _one_line(text: str) -> str:
    return " ".join(without_private(text).split())
