"""How new rows start: each method against a construction whose answer is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor

from transllm.errors import ModelError
from transllm.model import METHODS, Known, interleaved, start_of
from transllm.model.initial.focus import nearest, sparsemax
from transllm.model.initial.omp import matching_pursuit
from transllm.model.initial.random import normal_rows
from transllm.recipe.schema import Extend, RowStart

OLD = 40
PIECES = {50: [3, 5, 3], 51: [7, 8], 52: [9]}
N_BYTES = {token: 1 + token % 4 for token in range(OLD)}
Make = Callable[..., Known]


@pytest.fixture
def make_known() -> Make:
    """Facts about three pieces over forty old tokens."""
    def make(*, pieces: dict[int, list[int]] | None = None, documents: Iterable[Sequence[int]] = (),
             entries: Iterable[tuple[Sequence[int], Sequence[int]]] = (), seed: int = 1) -> Known:
        return Known(pieces or PIECES, N_BYTES, lambda: documents, lambda: entries, seed)

    return make


def matrix(rows: int = OLD, width: int = 16) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_recipe_names_the_methods() -> None:
    assert get_args(RowStart) == tuple(METHODS)
    assert Extend().init in METHODS


def test_a_method_that_does_not_exist_is_an_error(make_known: Make) -> None:
    with pytest.raises(ModelError, match=r"no way 'median'.*mean, by_length"):
        start_of("median", make_known())


@pytest.mark.parametrize("name,weights", [
    ("mean", {50: [1, 1, 1], 51: [1, 1], 52: [1]}),
    ("by_length", {50: [4, 2, 4], 51: [4, 1], 52: [2]}),  # bytes of 3, 5, 7, 8, 9
    ("by_position", {50: [1, 1 / 2, 1 / 3], 51: [1, 1 / 2], 52: [1]}),
    ("first", {50: [1, 0, 0], 51: [1, 0], 52: [1]}),
])
def test_weighted_means_are_those_of_a_hand_computation(make_known: Make, name: str, weights: dict[int, list[float]]) -> None:
    old = matrix()
    start = start_of(name, make_known())
    assert list(start.ids) == [50, 51, 52]
    for row, (new_id, parts) in zip(start.rows(old), PIECES.items(), strict=True):
        expected = sum(old[part] * weight for part, weight in zip(parts, weights[new_id], strict=True)) / sum(weights[new_id])
        torch.testing.assert_close(row, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_a_start_is_the_same_each_time_and_leaves_the_old_rows_alone(make_known: Make, name: str) -> None:
    documents = [[token % OLD, 50 + token % 3, (token * 7) % OLD] for token in range(300)]
    old = matrix().float()
    before = old.clone()
    found = [start_of(name, make_known(documents=documents, entries=[([50], [4])])) for _ in range(2)]
    assert found[0].ids and list(found[0].ids) == list(found[1].ids)
    assert torch.equal(found[0].rows(old), found[1].rows(old))
    assert torch.equal(old, before)


def test_random_rows_have_the_moments_of_each_dimension(make_known: Make) -> None:
    old = matrix(2000, 8) * torch.arange(1, 9) + torch.arange(8)
    rows = start_of("random", make_known(pieces={3000 + number: [0] for number in range(20_000)})).rows(old)
    torch.testing.assert_close(rows.double().mean(0), old.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(rows.double().std(0), old.std(0), rtol=0.03, atol=0)


def test_random_rows_depend_on_the_seed_and_differ_between_the_matrices(make_known: Make) -> None:
    old = matrix()
    start = start_of("random", make_known(seed=3))
    embedding, head = start.rows(old), start.rows(old)
    assert not torch.equal(embedding, head), "an untied head must not get the embedding's draws"
    assert torch.equal(embedding, normal_rows(old, 3, torch.Generator().manual_seed(3)))
    assert not torch.equal(embedding, start_of("random", make_known(seed=4)).rows(old))


def test_matching_pursuit_rebuilds_a_sparse_combination() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator, dtype=torch.float64), dim=1)
    planted = {0: {4: 1.0, 77: -0.7, 150: 0.5}, 1: {299: 0.4, 12: 1.3}}
    targets = torch.stack([sum(weight * atoms[place] for place, weight in terms.items()) for terms in planted.values()])
    chosen, weights = matching_pursuit(targets, atoms, terms=5)
    for number, terms in planted.items():
        found = dict(zip(chosen[number].tolist(), weights[number].tolist(), strict=True))
        assert {place: weight for place, weight in found.items() if abs(weight) > 1e-6} == pytest.approx(terms, abs=1e-6)
        assert len(set(chosen[number].tolist())) == 5, "no atom is taken twice"


def test_matching_pursuit_with_twins_and_with_few_atoms() -> None:
    atoms = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    chosen, weights = matching_pursuit(torch.tensor([[3.0, 4.0]]), atoms)
    assert chosen.shape[1] == 2, "no more terms than dimensions"
    torch.testing.assert_close(weights.unsqueeze(1) @ atoms[chosen].double(), torch.tensor([[[3.0, 4.0]]], dtype=torch.float64))


def test_the_nearest_are_found_and_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.nn.functional.normalize(torch.randn(500, 32, generator=generator), dim=1)
    places, weights = nearest(shared[[42, 7]], shared)
    assert places[:, 0].tolist() == [42, 7]
    assert (weights[:, 0] > 0.5).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))

    scores = torch.tensor([[0.5, 0.4, -0.2], [3.0, 1.0, 0.0], [0.1, 0.1, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(sparsemax(scores), torch.tensor([[0.55, 0.45, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3], dtype=torch.float64))


def _pairs() -> list[list[int]]:
    """Sentence pairs of twenty words each in its order; word 0 is translated by new token 50, 1 by 51, the others by old tokens."""
    draw = random.Random(0)
    pairs = []
    for _ in range(800):
        words = [draw.randrange(20) for _ in range(6)]
        pairs.append(interleaved(words, [50 + word if word < 2 else 20 + word for word in words]))
    return pairs


@pytest.mark.parametrize("name", ["focus", "omp"])
def test_the_planted_neighbour_weighs_most(make_known: Make, name: str) -> None:
    start = start_of(name, make_known(documents=_pairs()))
    assert sorted(start.ids) == [50, 51], "52 is not in the text: the method knows nothing of it"
    weights = dict(zip(start.ids, start.rows(torch.eye(OLD)), strict=True))
    assert weights[50].argmax() == 0
    assert weights[51].argmax() == 1


@pytest.mark.parametrize("name", ["focus", "omp"])
@pytest.mark.parametrize("documents", [[], [[50]], [[50, 51] * 50], [[1, 2] * 50]])
def test_text_that_says_nothing_starts_nothing(make_known: Make, name: str, documents: list[list[int]]) -> None:
    start = start_of(name, make_known(documents=documents))
    assert not start.ids
    assert start.rows(matrix()).shape == (0, 16)


def test_a_lexicon_counts_for_the_pieces_that_make_up_most_of_a_word(make_known: Make) -> None:
    entries = [([50], [30, 31]),        # the whole word: all of its English
               ([50, 2], [32]),         # 10 of 13 bytes (3, 5, 3 have 4, 2, 4; 2 has 3)
               ([51, 50], [33]),        # 51 is a third of it: 5 of 15 bytes; 50 is two thirds
               ([9, 8], [34])]          # no new piece
    start = start_of("lexicon", make_known(entries=entries))
    assert list(start.ids) == [50]
    weights = start.rows(torch.eye(OLD, dtype=torch.float64))[0]
    total = 1 + 10 / 13 + 10 / 15
    expected = {30: 0.5 / total, 31: 0.5 / total, 32: 10 / 13 / total, 33: 10 / 15 / total}
    assert {place: float(weights[place]) for place in weights.nonzero().flatten().tolist()} == pytest.approx(expected)
    assert math.isclose(float(weights.sum()), 1.0)
