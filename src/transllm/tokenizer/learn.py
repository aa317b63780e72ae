"""Learn further sub-words of a tokenizer on target-language text, without a change to how English is cut.

Training goes on where the tokenizer's own training ended: words are first cut into *original* tokens, then the most frequent
pair of neighbours is joined, again and again (Sennrich et al., arXiv 1508.07909). The new merges rank after all original ones,
so a new merge fires only where the original tokenizer had nothing left to do. A text is therefore cut as before unless it
holds two neighbouring *original* tokens that a new merge joins. Those pairs are collected from an English sample and never
joined. Each sample word counts in all its cases and with and without a space before it, since a word that the sample shows
inside a sentence opens the next one ("introduce", "Introduce"). For another script nothing depends on the sample: a piece must
hold bytes that only the script's characters have, so a text without them is cut as before, whatever it is.

The cut of a stretch of text between two token borders does not depend on what is around it, since every merge inside it is
ranked and made as if it stood alone. Two things follow that need no code. With ``ignore_merges`` (Llama 3: a pre-token that is
in the vocabulary is taken whole) a piece learned inside a long word is also what the merges make of it alone, so it cannot
appear whole in English, where its parts are forbidden. And no learned piece is shadowed: it occurs when it is made, and from
then on either stays or is a part of a piece that does. Pieces that end up as parts only cannot be left out, since the longer ones are
made of them; they are counted (``only_parts``).

The families learn alike; what differs is in their files (``bytelevel.py``, ``spbpe.py``, ``unigram.py``): where words end, which characters
must come in before anything can be joined, which tokens never join, and what the model needs beside the pieces.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transllm.tokenizer.family import Family, family_of, require_faithful
from transllm.tokenizer.joining import Joiner
from transllm.tokenizer.script import Script, script_of
from transllm.tokenizer.words import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_REPORT_EVERY = 100
_STEP = 1000
_FEWER_PRE_TOKENS = 0.1
"""The pre-tokenizer is changed only for so much: an engine that knows the rule by name only (llama.cpp) has no name for the changed one."""
_MEASURED = 5_000
"""Stretches on which the rules are compared."""
_SHORT = 4
_WORTH = 1e-4
"""Up to so many plain letters without a space before them stand inside names of all languages, and no English sample holds all names
("Bezos" has a Spanish plural): they are learned only if they save so large a share of the sample's tokens. Of 8,000 Spanish pieces
this exchanges 350 and costs 0.7 % more tokens; English sentences that are cut otherwise become 16 of 10,000, from 25."""
_LETTERS = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"[_{}\[\]<>=\\|@#$%^*~`/]")
_URL = re.compile(r"https?|ftp|www|html?|php", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned. Strings are written as the tokenizer's own pieces are: byte-level alphabet, or ▁ for a space.

    Attributes:
        merges: pairs to join, in rank order; each makes exactly one new piece. None for a Unigram model.
        pieces: the new pieces, in the order of their future ids. Characters that the vocabulary lacked come first; no merge makes them.
        dropped: pieces that were frequent enough but not taken, by reason: ``english`` (the pair or the character occurs in English, or
            the piece would change how an English word is cut), ``existing`` (the piece is in the vocabulary already, or is a step to
            one), ``digits`` (numbers keep their own tokens), ``code`` (signs of ASCII, or of program text), ``url`` (words of addresses),
            ``short`` (a few plain letters inside words, too rare to be worth a name that is cut otherwise; only for a Latin-script
            language) and ``latin`` (where the target script is another: Latin letters, or nothing that is the script's own).
        scores: log-probabilities of the pieces, for a Unigram model only.
        curve: (pieces, tokens): how many tokens the sample's words have with the first so many pieces, every hundred pieces, from the
            characters on. With ``least_saving`` it goes on to where the size was decided.
        only_parts: pieces that stand nowhere in the sample's final cut: longer ones are made of them. Of a Unigram model, this and the
            curve are of the joins that its pieces were found by; its own cut may need fewer or, without the pieces dropped then, more.
        script: what the sample is written in; empty for a Latin-script language.
        whole_words: whether runs of that script become pre-tokens.
        pre_tokens: how many the tokenizer's own rule makes of a part of the sample, and the rule with whole words, taken or not; the
            same twice where that does not make markedly fewer.
    """

    merges: list[tuple[str, str]]
    pieces: list[str]
    dropped: dict[str, int]
    scores: list[float] = field(default_factory=list)
    curve: list[tuple[int, int]] = field(default_factory=list)
    only_parts: int = 0
    script: Script = field(default_factory=Script)
    whole_words: bool = False
    pre_tokens: tuple[int, int] = (0, 0)


def learn_merges(tokenizer: PreTrainedTokenizerFast, target_texts: Iterable[str], english_texts: Iterable[str], *,
                 size: int, min_count: int, latin: bool = True, least_saving: float | None = None, whole_words: bool = True,
                 progress: Progress | None = None, reading: Progress | None = None) -> Learned:
    """Learn at most ``size`` pieces, each seen at least ``min_count`` times in the target sample.

    The result depends only on the tokenizer and on the words of the two samples and their counts, not on their order.
    Byte-level pieces may end inside a character: scripts of several bytes a character need them on the way.

    Args:
        tokenizer: of any family in ``family.py``.
        target_texts: the sample to learn on.
        english_texts: the sample whose cut must not change. More of it keeps more: 0.5, 2 and 5 M characters left 99.55, 99.69 and
            99.76 % of unseen sentences as they were (49 k vocabulary, 4,000 new pieces of another Latin-script language).
        size: new pieces at most; fewer come out where ``min_count`` is reached first.
        min_count: occurrences, in the cut at that moment.
        latin: whether the target language is written in the Latin script. If not, pieces with Latin letters and pieces without
            anything of the sample's script are not learned: names and loan words in the sample are no reason to cut English otherwise.
        least_saving: choose the size: the first at which a thousand more pieces would save less than this share of the sample's tokens.
        whole_words: change the pre-tokenizer where it cuts the script's words at combining marks (:mod:`transllm.tokenizer.script`).
        progress: called now and then with (pieces so far, ``size``).
        reading: called while the sample is cut, with (characters so far, all that are different).

    Raises:
        ModelError: the tokenizer is of another kind, or its normaliser loses letters of the target text.
    """
    family = family_of(tokenizer)
    target_texts = list(target_texts)
    require_faithful(tokenizer, target_texts)
    sample = family.counted(target_texts)
    del target_texts
    script = Script() if latin else script_of(sample)
    english = _in_all_cases((part for part in family.counted(english_texts) if not script.found_in(part)), family.space)
    learner = _Learner(family, tokenizer.get_vocab(), script=None if latin else script, least=max(1, min_count), size=size)
    backend = learner.spell(sample, english)
    changed, pre_tokens = _changed_rule(family, script, sample)
    if not whole_words:
        changed = None
    learner.forbid(family.cut(backend, english).pairs().tolist())
    if changed is None:
        in_tokens = family.cut(backend, sample, progress=reading)
    else:
        in_tokens = family.cut(changed, sample, single=re.compile(script.run), progress=reading)
    joiner = Joiner(in_tokens, min_count=max(1, min_count))
    del sample
    learner.learn(joiner, least_saving, progress)
    return family.finished(learner.result(joiner, script, changed is not None, pre_tokens), english)


def _changed_rule(family: Family, script: Script, sample: Mapping[str, int]) -> tuple[Tokenizer | None, tuple[int, int]]:
    """A backend with runs of the script as pre-tokens, if that makes markedly fewer of them; and how many each rule makes."""
    changed = family.whole_words(script)
    if changed is None:
        return None, (0, 0)
    words = sorted(word for word in sample if script.found_in(word))
    counted = dict.fromkeys(words[::max(1, len(words) // _MEASURED)], 1)
    before, after = (int(family.cut(backend, counted).first.sum()) for backend in (family.backend, changed))
    return (changed, (before, after)) if after <= (1 - _FEWER_PRE_TOKENS) * before else (None, (before, before))


def _in_all_cases(parts: Iterable[str], space: str) -> dict[str, int]:
    """The parts, and their words of plain letters also in lower case, capitalised, in upper case, with and without a space before."""
    grown = dict.fromkeys(parts, 1)
    words = {letters for part in grown for letters in _LETTERS.findall(part) if letters.isascii()}
    for letters in words:
        for variant in (letters, letters.lower(), letters.capitalize(), letters.upper()):
            grown[variant] = grown[space + variant] = 1
    return grown


class _Learner:
    """Chooses the pairs to join.

    Args:
        vocabulary: the tokenizer's.
        script: the script that each piece must have something of; None for a Latin-script language.
        least: occurrences of a character that becomes a piece.
        size: new pieces at most.
    """

    def __init__(self, family: Family, vocabulary: Mapping[str, int], *, script: Script | None, least: int, size: int) -> None:
        self._family, self._script, self._least, self._most = family, script, least, size
        self._known = dict(vocabulary)
        self._piece: dict[int, str] = {token_id: piece for piece, token_id in self._known.items()}
        self._first = max(self._piece) + 1
        self._forbidden: set[int] = set()
        self._dropped = {"english": 0, "existing": 0, "digits": 0, "code": 0, "url": 0, "short": 0, "latin": 0}
        self._characters: list[str] = []
        self._made: list[int] = []
        self._curve: list[tuple[int, int]] = []
        self._size = 0

    def spell(self, sample: Mapping[str, int], english: Mapping[str, int]) -> Tokenizer:
        """Make pieces of the characters that the vocabulary lacks, the most frequent first: bytes and unknown tokens never join.

        Returns:
            A plain backend that has them.
        """
        lacking = self._family.lacking(sample)
        spoken = self._family.lacking(english) if lacking else {}
        for char, count in sorted(lacking.items(), key=lambda entry: (-entry[1], entry[0])):
            if count < self._least or len(self._characters) == self._most:
                break
            reason = "english" if char in spoken else "latin" if self._foreign(char.encode(), char) else None
            if reason is not None:
                self._dropped[reason] += 1
                continue
            self._known[char], self._piece[self._first] = self._first, char
            self._first += 1
            self._characters.append(char)
        return self._family.spelled(self._characters) if self._characters else self._family.backend

    def forbid(self, pairs: Iterable[int]) -> None:
        """Never join these pairs of original tokens: they are neighbours in English."""
        self._forbidden.update(pairs)

    def learn(self, joiner: Joiner, least_saving: float | None, progress: Progress | None) -> None:
        """Join the most frequent allowed pair until there are enough pieces, no pair is frequent enough or more saves too little.

        Ties go to the lower ids. Counts on the heap can be out of date, never too low: they are corrected when they come up.
        """
        heap = [(-count, pair) for pair, count in joiner.counts.items()]
        heapq.heapify(heap)
        done = len(self._characters)
        self._curve.append((done, joiner.tokens))
        while heap and done < self._most:
            negative, pair = heapq.heappop(heap)
            count = joiner.counts[pair]
            if count != -negative:
                if count >= joiner.least:
                    heapq.heappush(heap, (-count, pair))
                else:
                    joiner.forget(pair)
                continue
            reason = self._objection(pair, rare=count < _WORTH * self._curve[0][1])
            if reason is not None:
                self._dropped[reason] += 1
                joiner.forget(pair)
                continue
            for grown, times in joiner.join(pair, self._new(pair)):
                heapq.heappush(heap, (-times, grown))
            done += 1
            if done % _REPORT_EVERY == 0 or done == self._most:
                self._curve.append((done, joiner.tokens))
                if progress is not None:
                    progress(done, self._most)
                if least_saving is not None and self._saved() < least_saving:
                    self._size = max(done - _STEP, len(self._characters))
                    return
        self._size = done
        if self._curve[-1][0] != self._size:
            self._curve.append((self._size, joiner.tokens))

    def _saved(self) -> float:
        """Share of tokens that the last thousand pieces saved; all of them before there are so many."""
        steps = _STEP // _REPORT_EVERY
        if len(self._curve) <= steps or not self._curve[-1 - steps][1]:
            return 1.0
        return 1 - self._curve[-1][1] / self._curve[-1 - steps][1]

    def _objection(self, pair: int, *, rare: bool) -> str | None:
        """The reason why a pair must not be joined."""
        if pair in self._forbidden:
            return "english"
        piece = self._joined(pair)
        if piece in self._known or self._family.touches(piece):
            return "existing"
        raw = self._family.bytes_of(piece)
        text = raw.decode(errors="ignore")
        if any(char.isdecimal() for char in text):
            return "digits"
        words = _LETTERS.findall(text)
        if _CODE.search(text) or (raw.isascii() and not words):
            return "code"
        if any(_URL.fullmatch(word) for word in words):
            return "url"
        if self._script is None and rare and len(piece) <= _SHORT and piece.isascii() and piece.isalpha():
            return "short"
        return "latin" if self._foreign(raw, text) else None

    def _foreign(self, raw: bytes, text: str) -> bool:
        """Whether bytes and their text are not the target script's."""
        script = self._script
        return script is not None and (not script.reached_by(raw) or any("LATIN" in unicodedata.name(char, "") for char in text))

    def _joined(self, pair: int) -> str:
        left, right = divmod(pair, 1 << 32)
        return self._piece[left] + self._piece[right]

    def _new(self, pair: int) -> int:
        """The id of the piece that a pair makes."""
        piece, new = self._joined(pair), self._first + len(self._made)
        self._known[piece], self._piece[new] = new, piece
        self._made.append(pair)
        return new

    def result(self, joiner: Joiner, script: Script, whole_words: bool, pre_tokens: tuple[int, int]) -> Learned:
        """What was learned, as strings."""
        counts = joiner.occurrences(self._first + len(self._made))
        kept = self._size - len(self._characters)
        for number in range(len(self._made) - 1, kept - 1, -1):  # take back what was joined beyond the chosen size
            for part in divmod(self._made[number], 1 << 32):
                counts[part] += counts[self._first + number]
        merges = [(self._piece[left], self._piece[right]) for left, right in (divmod(pair, 1 << 32) for pair in self._made[:kept])]
        used = counts[self._first: self._first + kept]
        return Learned(merges, [*self._characters, *(left + right for left, right in merges)], dict(self._dropped), curve=self._curve,
                       only_parts=int((used == 0).sum()), script=script, whole_words=whole_words, pre_tokens=pre_tokens)
