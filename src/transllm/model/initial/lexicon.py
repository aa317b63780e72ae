"""lexicon: a piece starts as the mean of the English words that a bilingual lexicon gives for the words it makes up.

A piece need not be a word. It counts for an entry if it makes up at least half of the entry's bytes, by its share of them: below
that, the rest of the word says more than the piece does.
"""

from __future__ import annotations

from collections import defaultdict

from transllm.model.initial.start import Known, Start, mixed, shares

_SHARE = 0.5


def lexicon(known: Known) -> Start:
    """Pieces that make up a word of the lexicon; the others are not started here."""
    n_bytes = {**known.n_bytes, **{new_id: sum(known.n_bytes[part] for part in parts) for new_id, parts in known.pieces.items()}}
    weights: defaultdict[int, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for target, english in known.entries():
        total = sum(n_bytes[token] for token in target)
        for token in target:
            share = n_bytes[token] / total
            if token in known.pieces and share >= _SHARE:
                for word in english:
                    weights[token][word] += share / len(english)
    return mixed({new_id: shares(list(words), list(words.values())) for new_id, words in sorted(weights.items())})
