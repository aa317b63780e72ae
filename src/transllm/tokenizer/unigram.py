"""Unigram: the cut of a text is the one whose pieces' scores sum highest (Kudo, arXiv 1804.10959).

**How new pieces get their scores.** A new piece joins neighbours of the original cut. It scores what they score together, and a little
more for each token that it saves:

    score(piece) = sum of the scores of its original tokens + GAIN * (tokens - 1) - tie

So a text is cut at the same places as before, and then into the fewest tokens that the new pieces allow; where two ways save the same,
the pieces that were learned first win (``tie`` grows with the rank and is at most a quarter of GAIN). A cut that the original held for
worse by more than the gain stays worse. English holds no pair of neighbours that was joined, so its best cut gains nothing; only a
word with a second cut almost as good could change. All words of the English sample are cut again with the new scores, and
pieces that appear in one that changed are dropped and counted.

GAIN is a trade: sentencepiece sums in single precision, which a smaller one would drown in; a larger one would reach more English.

Characters that the vocabulary lacks come in first, with the score of its rarest piece: far above the unknown token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from transllm.tokenizer.learn import Learned
from transllm.tokenizer.sentencepiece import SentencePiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GAIN = 0.2
_TIE = GAIN / 4
# With a space inside, no text reaches it: spaces are written as ▁.
_HOLE = " unused {}"


class Unigram(SentencePiece):
    """See :class:`transllm.tokenizer.family.Family`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, parsed: dict[str, Any]) -> None:
        super().__init__(tokenizer, parsed)
        self._scores: dict[str, float] = dict(parsed["model"]["vocab"])
        self._floor = min(self._scores.values())

    def spelled(self, characters: Sequence[str]) -> Tokenizer:
        return self.grown(Learned([], list(characters), {}, scores=[self._floor] * len(characters)))

    def touches(self, piece: str) -> bool:
        return False

    def finished(self, learned: Learned, english: Iterable[str]) -> Learned:
        """Scores for the pieces; those that change how an English word is cut are taken out."""
        made = {left + right for left, right in learned.merges}
        characters = [piece for piece in learned.pieces if piece not in made]
        backend = self.spelled(characters) if characters else self.backend
        known = {**self._scores, **dict.fromkeys(characters, self._floor)}
        scores: dict[str, float] = {}
        for rank, piece in enumerate(learned.pieces):
            cut = [token.value for token in backend.model.tokenize(piece)]
            tie = _TIE * rank / len(learned.pieces)
            scores[piece] = self._floor if piece not in made else sum(known[part] for part in cut) + GAIN * (len(cut) - 1) - tie
        before = {word: self._cut(self.backend, word) for word in english}
        while True:
            kept = replace(learned, merges=[], pieces=list(scores), scores=list(scores.values()))
            after = self.grown(kept)
            changed = {word: cut for word in before if (cut := self._cut(after, word)) != before[word]}
            guilty = {piece for cut in changed.values() for _, piece in cut} & scores.keys()
            if not guilty:
                dropped = learned.dropped | {"english": learned.dropped.get("english", 0) + len(learned.pieces) - len(scores)}
                return replace(kept, dropped=dropped)
            scores = {piece: score for piece, score in scores.items() if piece not in guilty}
            # Fewer pieces leave a word that was cut as before as it was: its cut is still there, and less competes with it.
            before = {word: before[word] for word in changed}

    def fits(self, learned: Learned) -> bool:
        return not learned.merges and len(learned.scores) == len(learned.pieces)

    def insert(self, learned: Learned, old: Mapping[str, int], atoms: Collection[str]) -> None:
        entries: list[list[Any]] = self.parsed["model"]["vocab"]
        contents = {number: content for content, number in old.items()}
        entries += [[contents.get(number, _HOLE.format(number)), self._floor]
                    for number in range(len(entries), max(old.values()) + 1)]
        entries += [[piece, score] for piece, score in zip(learned.pieces, learned.scores, strict=True)]
        entries += [[atom, self._floor] for atom in atoms]

    @staticmethod
    def _cut(backend: Tokenizer, word: str) -> list[tuple[int, str]]:
        return [(token.id, token.value) for token in backend.model.tokenize(word)]
