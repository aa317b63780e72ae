"""A packed row gives every document what it would get alone, on every attention back end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from transllm.errors import ModelError
from transllm.model import PACKED, Documents, attention, enable_packed, hidden_states
from transllm.model.attention import Shared, _Attention, _causal_mask, _fused_attention, packed_attention
from transllm.native import Heads

Make = Callable[..., PreTrainedModel]
LENGTHS = [13, 1, 40, 7, 40, 3]  # several groups: 1 to 32 slots, then more than twice as long
BACK_ENDS = [(kind, back_end) for kind in ("tied", "padded", "sliding") for back_end in (PACKED, "sdpa", "eager")] + [("gemma2", "eager")]


def _ids(*, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 320, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "back_end"), BACK_ENDS)
def test_every_document_gets_what_it_gets_alone(make_chat_model: Make, kind: str, back_end: str) -> None:
    model, ids = make_chat_model(kind), _ids()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, dim=1)]
        model.set_attn_implementation(back_end)
        packed = model.get_output_embeddings()(hidden_states(model, ids, Documents(LENGTHS)))
    if kind == "gemma2":
        packed = torch.tanh(packed / 3.0) * 3.0
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("back_end", [PACKED, "sdpa", "eager"])
def test_a_document_does_not_see_its_neighbour(make_chat_model: Make, back_end: str) -> None:
    model, ids = make_chat_model("tied"), _ids()
    model.set_attn_implementation(back_end)
    changed = ids.clone()
    changed[0, : LENGTHS[0]] = (changed[0, : LENGTHS[0]] + 1) % 320
    with torch.no_grad():
        before, after = (hidden_states(model, row, Documents(LENGTHS)) for row in (ids, changed))
    assert torch.equal(before[:, LENGTHS[0]:], after[:, LENGTHS[0]:])
    assert not torch.equal(before[:, : LENGTHS[0]], after[:, : LENGTHS[0]])


@pytest.mark.parametrize("kind", ["tied", "padded", "sliding"])
def test_gradients_are_those_of_eager_attention(make_chat_model: Make, kind: str) -> None:
    ids, gradients = _ids(), {}
    for back_end in ("eager", PACKED):
        model = make_chat_model(kind)
        model.set_attn_implementation(back_end)
        hidden = hidden_states(model, ids, Documents(LENGTHS))
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        gradients[back_end] = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients[PACKED].keys() == gradients["eager"].keys() and gradients[PACKED]
    for name, gradient in gradients["eager"].items():
        torch.testing.assert_close(gradients[PACKED][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("kind", ["tied", "untied", "padded", "gemma", "sliding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_enabled_where_it_gives_the_same(make_chat_model: Make, kind: str, dtype: torch.dtype) -> None:
    model = make_chat_model(kind, dtype=dtype).train()
    assert enable_packed(model)
    assert model.config._attn_implementation == PACKED
    assert model.training, "the mode is left as it was"


def test_a_soft_cap_keeps_the_models_own_attention(make_chat_model: Make) -> None:
    model = make_chat_model("gemma2")
    before = model.config._attn_implementation
    assert not enable_packed(model)
    assert model.config._attn_implementation == before
    with torch.no_grad():
        hidden_states(model, _ids(), Documents(LENGTHS))


def test_attention_that_differs_is_found_out(make_chat_model: Make) -> None:
    model = make_chat_model("tied")
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "documents": Documents([40])} if "documents" in kwargs else kwargs),
            with_kwargs=True)
    assert not enable_packed(model)


def test_what_it_cannot_do_is_an_error() -> None:
    query, key = torch.zeros(1, 4, 5, 8), torch.zeros(1, 2, 5, 8)
    with pytest.raises(ModelError, match="no documents"):
        packed_attention(torch.nn.Identity(), query, key, key, None)
    with pytest.raises(ModelError, match="softcap"):
        packed_attention(torch.nn.Identity(), query, key, key, None, documents=Documents([5]), softcap=5.0)
    with pytest.raises(ModelError):
        packed_attention(torch.nn.Identity(), query.expand(2, -1, -1, -1), key, key, None, documents=Documents([5]))
    for lengths in ([], [3, 0]):
        with pytest.raises(ValueError, match="document"):
            Documents(lengths)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_every_token_has_one_real_slot(lengths: list[int]) -> None:
    documents = Documents(lengths)
    total = sum(lengths)
    assert torch.equal(documents.gather[documents.back], torch.arange(total)), "scattering undoes gathering"
    assert int(documents.real.sum()) == total
    assert documents.positions_1T.tolist() == [[place for length in lengths for place in range(length)]]
    assert sum(count for _, count, _ in documents.groups) == len(lengths)
    assert len(documents.gather) <= 1.5 * total + 32 * len(lengths), "padding is bounded"


SHARED_LENGTHS = [40, 30, 13, 50, 9]
SHARED = [Shared(1, of=0, tokens=12), Shared(3, of=1, tokens=20), Shared(2, of=3, tokens=12)]
"""The second begins like the first, the fourth like the second (with more than that has from the first), the third like the fourth."""


def _alike() -> tuple[torch.Tensor, Documents]:
    """Documents in a line, each whole, that begin as ``SHARED`` says; and where they lie in a row that holds beginnings once."""
    ids = [torch.randint(0, 320, (length,), generator=torch.Generator().manual_seed(length)) for length in SHARED_LENGTHS]
    for one in SHARED:
        ids[one.document][: one.tokens] = ids[one.of][: one.tokens]
    return torch.cat(ids).unsqueeze(0), Documents(SHARED_LENGTHS, shared=SHARED)


@pytest.mark.parametrize("back_end", [PACKED, "sdpa", "apart"])
@pytest.mark.parametrize("kind", ["tied", "padded", "sliding"])
def test_documents_that_share_a_beginning_get_what_they_get_alone(make_chat_model: Make, kind: str, back_end: str) -> None:
    whole_1T, documents = _alike()
    own = documents.own_T
    row_1T = whole_1T[:, own]
    assert row_1T.shape[1] == sum(SHARED_LENGTHS) - sum(one.tokens for one in SHARED)
    found = []
    for ids_1T, given_documents in ((row_1T, documents), (whole_1T, Documents(SHARED_LENGTHS))):
        model = make_chat_model(kind)
        model.set_attn_implementation("eager" if back_end == "apart" else back_end)
        model.documents_apart = back_end == "apart"  # type: ignore[assignment]
        states = hidden_states(model, ids_1T, given_documents)
        states = states[:, own] if ids_1T is whole_1T else states
        # Only what is a document's own is looked at: a beginning hears of it through those that go on from it.
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        found.append((states.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}))
    (shared, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(shared, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("window", [None, 7])
def test_torchs_kernel_shares_beginnings_too(window: int | None) -> None:
    _, documents = _alike()
    shape, generator = Heads(4, 2, 8), torch.Generator().manual_seed(1)
    given = [torch.randn(len(documents.back), heads * 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    found = []
    for fused in (False, True):
        rows = [part.clone().requires_grad_() for part in given]
        output: torch.Tensor = (_fused_attention(rows, documents, shape, 0.3, window, 0.0) if fused
                                else _Attention.apply(*rows, documents, shape, 0.3, window))  # type: ignore[no-untyped-call]
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        found.append([output.detach(), *(part.grad for part in rows)])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize(("window", "masks"), [(60, 0), (59, 1)])
def test_a_window_that_hides_nothing_costs_no_mask(monkeypatch: pytest.MonkeyPatch, window: int, masks: int) -> None:
    """With one, torch has no fast kernel on CUDA."""
    made: list[int] = []
    monkeypatch.setattr(attention, "_causal_mask", lambda *args: (made.append(1), _causal_mask(*args))[1])
    module = torch.nn.Module().train()  # with dropout torch's kernel is taken on a processor too
    query, key, value = torch.randn(3, 1, 2, 60, 8).unbind()
    packed_attention(module, query, key, value, None, dropout=0.1, documents=Documents([60]), sliding_window=window)
    assert len(made) == masks


def test_what_cannot_be_shared_is_an_error() -> None:
    for shared in (Shared(1, of=0, tokens=6), Shared(1, of=0, tokens=4), Shared(1, of=0, tokens=0)):
        with pytest.raises(ValueError, match="document 1 cannot share"):
            Documents([5, 4], shared=[shared])


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8), st.data())
def test_every_token_of_a_shared_row_has_one_real_slot(lengths: list[int], data: st.DataObject) -> None:
    shared = []
    for number in range(1, len(lengths)):
        of = data.draw(st.integers(0, number - 1))
        tokens = data.draw(st.integers(0, min(lengths[of], lengths[number] - 1)))
        shared += [Shared(number, of, tokens)] if tokens else []
    documents = Documents(lengths, shared=shared)
    total = sum(lengths) - sum(one.tokens for one in shared)
    whole = Documents(lengths)
    assert torch.equal(documents.gather[documents.back], torch.arange(total))
    assert int(documents.real.sum()) == total == len(documents.own_T)
    assert torch.equal(documents.places_W[documents.own_T], torch.arange(total)), "a document's own tokens stand in the row's order"
    assert torch.equal(documents.positions_1T, whole.positions_1T[:, documents.own_T])
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    for one in shared:
        mine, theirs = (documents.places_W[starts[number]: starts[number] + one.tokens] for number in (one.document, one.of))
        assert torch.equal(mine, theirs)
