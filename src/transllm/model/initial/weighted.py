"""by_length, by_position, first: means of the sub-tokens in which not all weigh alike."""

from __future__ import annotations

from transllm.model.initial.start import Known, Start, mixed, shares


def by_length(known: Known) -> Start:
    """Each sub-token weighs as many bytes as it stands for: "bibli" says more of a word than the "o" after it."""
    return mixed({new_id: shares(parts, [known.n_bytes[part] for part in parts]) for new_id, parts in known.pieces.items()})


def by_position(known: Known) -> Start:
    """The sub-tokens weigh 1, 1/2, 1/3 ... in text order.

    The first is the one that the original model writes where the piece is due; the later ones follow from it more and more.
    """
    return mixed({new_id: shares(parts, [1 / place for place in range(1, len(parts) + 1)]) for new_id, parts in known.pieces.items()})


def first(known: Known) -> Start:
    """The first sub-token alone.

    For an untied head (EEVE, arXiv 2402.14714, does so): a piece is then exactly as likely as its first sub-token was. As an embedding
    it forgets the rest of the piece.
    """
    return mixed({new_id: {parts[0]: 1.0} for new_id, parts in known.pieces.items()})
