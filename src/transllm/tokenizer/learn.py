"""Learn further merges of a byte-level BPE on target-language text, without a change to how English is cut.

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
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from transllm.tokenizer.bytelevel import piece_bytes, plain_backend, structure
from transllm.tokenizer.joining import Joiner
from transllm.tokenizer.script import Script, script_of, with_whole_words
from transllm.tokenizer.words import Progress, cut, stretches

if TYPE_CHECKING:
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
    """What was learned. Strings are in the byte-level alphabet.

    Attributes:
        merges: pairs to join, in rank order; each makes exactly one new piece.
        pieces: the new pieces, in the order of their future ids.
        dropped: merges that were frequent enough but not taken, by reason: ``english`` (the pair occurs in English), ``existing``
            (the piece is in the vocabulary already), ``digits`` (numbers keep their own tokens), ``code`` (signs of ASCII, or of program
            text), ``url`` (words of addresses), ``short`` (a few plain letters inside words, too rare to be worth a name that is cut
            otherwise; only for a Latin-script language) and ``latin`` (where the target script is another: Latin letters, or nothing
            that is the script's own).
        curve: (pieces, tokens): how many tokens the sample's words have with the first so many pieces, every hundred pieces. With
            ``least_saving`` it goes on to where the size was decided.
        only_parts: pieces that stand nowhere in the sample's final cut: longer ones are made of them.
        script: what the sample is written in; empty for a Latin-script language.
        whole_words: whether runs of that script become pre-tokens.
        pre_tokens: how many the tokenizer's own rule makes of a part of the sample, and the rule that holds now.
    """

    merges: list[tuple[str, str]]
    pieces: list[str]
    dropped: dict[str, int]
    curve: list[tuple[int, int]] = field(default_factory=list)
    only_parts: int = 0
    script: Script = field(default_factory=Script)
    whole_words: bool = False
    pre_tokens: tuple[int, int] = (0, 0)


def learn_merges(tokenizer: PreTrainedTokenizerFast, target_texts: Iterable[str], english_texts: Iterable[str], *,
                 size: int, min_count: int, latin: bool = True, least_saving: float | None = None, whole_words: bool = True,
                 progress: Progress | None = None, reading: Progress | None = None) -> Learned:
    """Learn at most ``size`` merges, each seen at least ``min_count`` times in the target sample.

    The result depends only on the tokenizer and on the words of the two samples and their counts, not on their order.
    Pieces may end inside a character (as byte-level pieces do): scripts of several bytes a character need them on the way.

    Args:
        tokenizer: a byte-level BPE.
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
        ModelError: the tokenizer is of another kind.
    """
    structure(tokenizer)
    original = plain_backend(tokenizer)
    sample = stretches(target_texts)
    script = Script() if latin else script_of(sample)
    backend, pre_tokens = _backend(original, script, sample) if whole_words else (original, (0, 0))
    learner = _Learner(tokenizer, script=None if latin else script)
    learner.forbid(cut(original, _in_all_cases(text for text in stretches(english_texts) if not script.found_in(text))).pairs().tolist())
    changed = backend is not original
    joiner = Joiner(cut(backend, sample, single=re.compile(script.run) if changed else None, progress=reading), min_count=max(1, min_count))
    del sample
    learner.learn(joiner, size, least_saving, progress)
    return learner.result(joiner, script, changed, pre_tokens)


def _backend(original: Tokenizer, script: Script, sample: Iterable[str]) -> tuple[Tokenizer, tuple[int, int]]:
    """The tokenizer with runs of the script as pre-tokens, if that makes markedly fewer of them; and how many each rule makes."""
    text = with_whole_words(original.to_str(), script)
    if text is None:
        return original, (0, 0)
    changed = Tokenizer.from_str(text)
    changed.encode_special_tokens = True
    words = sorted(word for word in sample if script.found_in(word))
    counted = dict.fromkeys(words[::max(1, len(words) // _MEASURED)], 1)
    before, after = (int(cut(backend, counted).first.sum()) for backend in (original, changed))
    return (changed, (before, after)) if after <= (1 - _FEWER_PRE_TOKENS) * before else (original, (before, before))


def _in_all_cases(texts: Iterable[str]) -> dict[str, int]:
    """The stretches, and their words of plain letters also in lower case, capitalised, in upper case, with and without a space before."""
    grown = dict.fromkeys(texts, 1)
    words = {letters for text in grown for letters in _LETTERS.findall(text) if letters.isascii()}
    for letters in words:
        for variant in (letters, letters.lower(), letters.capitalize(), letters.upper()):
            grown[variant] = grown[f" {variant}"] = 1
    return grown


class _Learner:
    """Chooses the pairs to join.

    Args:
        script: the script that each piece must have something of; None for a Latin-script language.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, script: Script | None) -> None:
        self._script = script
        self._known: dict[str, int] = dict(tokenizer.get_vocab())
        self._piece: dict[int, str] = {token_id: piece for piece, token_id in self._known.items()}
        self._first = max(self._piece) + 1
        self._forbidden: set[int] = set()
        self._dropped = {"english": 0, "existing": 0, "digits": 0, "code": 0, "url": 0, "short": 0, "latin": 0}
        self._made: list[int] = []
        self._curve: list[tuple[int, int]] = []
        self._size = 0

    def forbid(self, pairs: Iterable[int]) -> None:
        """Never join these pairs of original tokens: they are neighbours in English."""
        self._forbidden.update(pairs)

    def learn(self, joiner: Joiner, size: int, least_saving: float | None, progress: Progress | None) -> None:
        """Join the most frequent allowed pair until ``size`` pieces are made, no pair is frequent enough or more saves too little.

        Ties go to the lower ids. Counts on the heap can be out of date, never too low: they are corrected when they come up.
        """
        heap = [(-count, pair) for pair, count in joiner.counts.items()]
        heapq.heapify(heap)
        self._curve.append((0, joiner.tokens))
        while heap and len(self._made) < size:
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
            done = len(self._made)
            if done % _REPORT_EVERY == 0 or done == size:
                self._curve.append((done, joiner.tokens))
                if progress is not None:
                    progress(done, size)
                if least_saving is not None and self._saved() < least_saving:
                    self._size = done - _STEP
                    return
        self._size = len(self._made)
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
        if piece in self._known:
            return "existing"
        raw = piece_bytes(piece)
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
        if self._script is not None and (not self._script.reached_by(raw) or any("LATIN" in unicodedata.name(char, "") for char in text)):
            return "latin"
        return None

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
        for number in range(len(self._made) - 1, self._size - 1, -1):  # take back what was joined beyond the chosen size
            for part in divmod(self._made[number], 1 << 32):
                counts[part] += counts[self._first + number]
        merges = [(self._piece[left], self._piece[right]) for left, right in (divmod(pair, 1 << 32) for pair in self._made[: self._size])]
        used = counts[self._first: self._first + self._size]
        return Learned(merges, [left + right for left, right in merges], dict(self._dropped), self._curve, int((used == 0).sum()),
                       script, whole_words, pre_tokens)
