"""Growing: old rows bit for bit, new rows by id, sizes that agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model import METHODS, Known, Start, check_sizes, end_of_turn_ids, grow, load_folder, start_of
from transllm.tokenizer import SpanTokenizer, sub_tokens

Make = Callable[..., PreTrainedModel]
KINDS = ["tied", "untied", "padded", "gemma2"]


def _matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_old_rows_stay_and_new_rows_are_means(make_chat_model: Make, make_extended: Make, tiny_spans: SpanTokenizer, kind: str,
                                              dtype: torch.dtype) -> None:
    before, after = make_chat_model(kind, dtype=dtype), make_extended(kind, dtype=dtype)
    parts = sub_tokens(tiny_spans.original, tiny_spans.extended)
    assert sorted(parts) == list(range(tiny_spans.original_size, tiny_spans.size))
    for old, new in zip(_matrices(before), _matrices(after), strict=True):
        assert new.dtype == dtype
        assert torch.equal(new[: tiny_spans.original_size], old[: tiny_spans.original_size])
        for new_id, ids in parts.items():
            # Rounded once, from float64; half of a last place can still fall on either side.
            torch.testing.assert_close(new[new_id], old[ids].double().mean(0).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def _facts(spans: SpanTokenizer, parts: dict[int, list[int]], left_out: int) -> Known:
    """What methods know: text in which all pieces occur, a lexicon of all of them, and nothing of the last few new ids."""
    pieces = {new_id: ids for new_id, ids in parts.items() if new_id < spans.size - left_out}
    documents = [[new_id, 7, 8, 9, *ids] * 5 for new_id, ids in parts.items()]
    n_bytes = {token: 1 + token % 3 for token in range(spans.original_size)}
    return Known(pieces, n_bytes, lambda: documents, lambda: [([new_id], [5, 6]) for new_id in pieces])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_writes_its_own_rows_and_no_other(make_chat_model: Make, make_extended: Make, tiny_spans: SpanTokenizer, kind: str,
                                                       name: str) -> None:
    """Whatever starts the pieces: old rows bit for bit, rows that it does not know are means, padding stays, ties stay."""
    before, means, model = make_chat_model(kind), make_extended(kind), make_chat_model(kind)
    parts = sub_tokens(tiny_spans.original, tiny_spans.extended)
    start = start_of(name, _facts(tiny_spans, parts, left_out=4))
    grow(model, size=tiny_spans.size, sub_tokens=parts, start=start)
    used = slice(0, tiny_spans.original_size)
    for old, mean, new in zip(*map(_matrices, (before, means, model)), strict=True):
        assert torch.equal(new[used], old[used])
        assert torch.equal(new[tiny_spans.size - 4: tiny_spans.size], mean[tiny_spans.size - 4: tiny_spans.size])
        assert torch.equal(new[tiny_spans.size:], mean[tiny_spans.size:])
        if name != "random":  # which draws anew for each matrix
            assert torch.equal(new[list(start.ids)], start.rows(old[used]).float())
        assert torch.equal(new[list(start.ids)], mean[list(start.ids)]) is (name == "mean")
    check_sizes(model, tiny_spans.extended, where="a test")
    embedding, head = _matrices(model)
    assert (embedding.data_ptr() == head.data_ptr()) is (kind != "untied")


def test_an_untied_head_may_start_in_its_own_way(make_chat_model: Make, make_extended: Make, tiny_spans: SpanTokenizer) -> None:
    before, means, model = make_chat_model("untied"), make_extended("untied"), make_chat_model("untied")
    parts = sub_tokens(tiny_spans.original, tiny_spans.extended)
    grow(model, size=tiny_spans.size, sub_tokens=parts, head_start=start_of("first", _facts(tiny_spans, parts, left_out=0)))
    assert torch.equal(_matrices(model)[0], _matrices(means)[0])
    old, new = _matrices(before)[1], _matrices(model)[1]
    for new_id, ids in parts.items():
        assert torch.equal(new[new_id], old[ids[0]])


def test_a_tied_head_has_no_way_of_its_own(make_chat_model: Make) -> None:
    model = make_chat_model("tied")
    with pytest.raises(ModelError, match="tied"):
        grow(model, size=330, sub_tokens={320: [1]}, head_start=Start([], lambda old: old[:0]))


@pytest.mark.parametrize("start", [
    Start([3], lambda old: old[:1]), Start([320, 321], lambda old: old[:1]), Start([320], lambda old: old[:1] / 0)],
    ids=["an old id", "a row too few", "not finite"])
def test_a_start_that_is_wrong_is_an_error_and_changes_nothing(make_chat_model: Make, start: Start) -> None:
    model = make_chat_model("untied")
    before = [matrix.detach().clone() for matrix in _matrices(model)]
    with pytest.raises(ModelError, match="bug in the method"):
        grow(model, size=322, sub_tokens={320: [1], 321: [2]}, start=start)
    assert all(torch.equal(old, new) for old, new in zip(before, _matrices(model), strict=True))


def test_a_padded_matrix_takes_new_rows_into_its_padding(make_chat_model: Make, make_extended: Make, tiny_spans: SpanTokenizer) -> None:
    before, after = make_chat_model("padded"), make_extended("padded")
    old, new = _matrices(before)[0], _matrices(after)[0]
    assert old.shape[0] > tiny_spans.size, "the fixture's padding is larger than the extension"
    assert new.shape == old.shape
    assert torch.equal(new[tiny_spans.size:], old[tiny_spans.size:]), "rows behind the new ids are still padding"
    assert not torch.equal(new[tiny_spans.original_size: tiny_spans.size], old[tiny_spans.original_size: tiny_spans.size])


def test_padding_that_is_too_small_is_filled_and_the_matrix_grows(make_chat_model: Make) -> None:
    model = make_chat_model("tied")
    old = _matrices(model)[0].detach().clone()
    used = len(old) - 10  # as if ten rows were padding
    grow(model, size=len(old) + 5, sub_tokens={used + place: [place, place + 1] for place in range(12)})
    new = _matrices(model)[0]
    assert torch.equal(new[:used], old[:used])
    for place in range(12):
        assert torch.equal(new[used + place], old[[place, place + 1]].mean(0))
    assert torch.allclose(new[used + 12:], old.mean(0).expand(3, -1)), "rows that nothing describes are the mean of all"


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_agree_and_ties_are_read_off_the_tensors(make_chat_model: Make, make_extended: Make, tiny_spans: SpanTokenizer,
                                                       kind: str) -> None:
    model = make_extended(kind)
    check_sizes(model, tiny_spans.extended, where="a test")
    embedding, head = _matrices(model)
    tied = kind != "untied"
    assert (embedding.data_ptr() == head.data_ptr()) is tied
    assert model.config.tie_word_embeddings is tied
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == embedding.shape[0]

    lying = make_chat_model(kind)
    lying.config.tie_word_embeddings = not tied
    grow(lying, size=tiny_spans.size, sub_tokens={})
    assert lying.config.tie_word_embeddings is tied


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_old_ids_are_the_originals(make_chat_model: Make, make_extended: Make, tiny_spans: SpanTokenizer, kind: str) -> None:
    ids = torch.tensor([tiny_spans.encode_english("The teacher wants to visit the city library.")])
    with torch.no_grad():
        old, new = make_chat_model(kind)(ids).logits, make_extended(kind)(ids).logits
    torch.testing.assert_close(new[..., : tiny_spans.original_size], old[..., : tiny_spans.original_size], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(make_extended: Make, make_folders: Callable[[str], Any], tiny_spans: SpanTokenizer, kind: str) -> None:
    expected = make_extended(kind)
    model, tokenizer = load_folder(make_folders(kind).extended)
    assert len(tokenizer) == tiny_spans.size
    assert not model.training
    for left, right in zip(_matrices(expected), _matrices(model), strict=True):
        assert torch.equal(left, right)
    embedding, head = _matrices(model)
    assert (embedding.data_ptr() == head.data_ptr()) is (kind != "untied")


@pytest.mark.parametrize("wrong", [-1, 320, 10**6])
def test_a_sub_token_that_is_not_an_original_id_is_an_error(make_chat_model: Make, wrong: int) -> None:
    model = make_chat_model("padded")
    before = _matrices(model)[0].detach().clone()
    with pytest.raises(ModelError, match=str(wrong)):
        grow(model, size=323, sub_tokens={320: [1], 321: [wrong, 2], 322: [3]})
    assert torch.equal(before, _matrices(model)[0])


def test_heads_that_cannot_grow_are_errors(make_chat_model: Make) -> None:
    model = make_chat_model("untied")
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros(head.out_features))
    with pytest.raises(ModelError, match="bias"):
        grow(model, size=400, sub_tokens={})
    model.set_output_embeddings(nn.Identity())
    with pytest.raises(ModelError, match="Identity"):
        grow(model, size=400, sub_tokens={})


def test_sizes_that_disagree_are_an_error(make_extended: Make, make_chat_model: Make, tiny_spans: SpanTokenizer) -> None:
    with pytest.raises(ModelError, match="somewhere"):
        check_sizes(make_chat_model("tied"), tiny_spans.extended, where="somewhere")
    model = make_extended("untied")
    model.config.vocab_size += 1
    with pytest.raises(ModelError, match="Sizes disagree"):
        check_sizes(model, tiny_spans.extended, where="somewhere")


def test_end_of_turn_ids(make_chat_model: Make, tiny_spans: SpanTokenizer) -> None:
    model = make_chat_model("tied")
    model.generation_config.eos_token_id = [3, 0]
    assert end_of_turn_ids(model, tiny_spans.extended) == [0, 3]
