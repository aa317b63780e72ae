"""Compiled kernels: what torch computes in float64, on whatever shapes; where they are not to be used; and what happens without them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from transllm import native
from transllm.model import Documents
from transllm.model.attention import Shared
from transllm.model.norm import _RmsNorm
from transllm.native import Heads, Kernels, kernels
from transllm.native.build import load
from transllm.native.proof import wrong

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(kernels() is None, reason="there is no C compiler here, so there are no compiled kernels to test")]

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.01}
DTYPES = pytest.mark.parametrize("dtype", CLOSE)


@pytest.fixture
def ready() -> Kernels:
    found = kernels()
    assert found is not None
    return found


@pytest.fixture
def with_attention(ready: Kernels) -> Kernels:
    if not ready.has_attention:
        pytest.skip("this processor does not multiply bfloat16 in tiles (AMX), so attention stays torch's")
    return ready


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _near(ours: Tensor, expected: Tensor, close: float) -> None:
    assert ours.shape == expected.shape
    assert (ours.double() - expected.double()).norm() <= close * expected.double().norm()


@DTYPES
@given(rows=st.integers(1, 5), width=st.integers(1, 70))
def test_gates_of_any_shape(dtype: torch.dtype, rows: int, width: int) -> None:
    ready = kernels()
    assert ready is not None
    gate, up = _random(1, rows, 2 * width + 3, dtype=dtype).mul_(4)[..., : 2 * width].split(width, dim=-1)
    gradient = _random(1, rows, width, dtype=dtype, seed=2)
    wide = [one.double().requires_grad_() for one in (gate, up)]
    product = nn.functional.silu(wide[0]) * wide[1]
    _near(ready.gate(gate, up), product.detach(), CLOSE[dtype])
    again, *both = ready.gate_back(gradient, gate, up)
    assert torch.equal(again, ready.gate(gate, up))
    for ours, expected in zip(both, torch.autograd.grad(product, wide, gradient.double()), strict=True):
        _near(ours, expected, CLOSE[dtype])
    assert both[1].data_ptr() - both[0].data_ptr() == width * gate.element_size(), "halves of one matrix"


@DTYPES
@given(rows=st.integers(1, 5), width=st.integers(1, 70))
def test_norms_of_any_shape(dtype: torch.dtype, rows: int, width: int) -> None:
    ready = kernels()
    assert ready is not None
    weight, x, gradient = _random(width, dtype=dtype), *(_random(1, rows, width, dtype=dtype, seed=seed) for seed in (2, 3))
    wide = x.double().requires_grad_()
    expected = nn.functional.rms_norm(wide, (width,), weight.double(), 1e-2)
    out, normed, inverse = ready.norm(x, weight, 1e-2)
    _near(out, expected.detach(), CLOSE[dtype])
    assert torch.equal(ready.weigh(normed, weight), out)
    # A row's gradient may nearly vanish (of one number it does): what is left then is rounding of what was there before.
    ours, (theirs,) = ready.norm_back(gradient, normed, inverse, weight), torch.autograd.grad(expected, wide, gradient.double())
    assert (ours.double() - theirs).norm() <= CLOSE[dtype] * (gradient * weight).double().mul(inverse.double()).norm()


@DTYPES
@pytest.mark.parametrize(("heads", "size"), [(1, 8), (3, 64), (2, 50)])
def test_rotation_and_its_way_back(ready: Kernels, dtype: torch.dtype, heads: int, size: int) -> None:
    x = _random(1, 7, 2 * heads * size, dtype=dtype).view(1, 7, 2 * heads, size).transpose(1, 2)[:, heads:]
    cos, sin = _random(1, 1, 7, size, dtype=dtype, seed=2), _random(1, 1, 7, size, dtype=dtype, seed=3)
    wide = x.double().requires_grad_()
    first, second = wide.chunk(2, -1)
    turned = wide * cos.double() + torch.cat([-second, first], -1) * sin.double()
    _near(ready.rotate(x, cos, sin, back=False), turned.detach(), CLOSE[dtype])
    gradient = _random(1, heads, 7, size, dtype=dtype, seed=4)
    _near(ready.rotate(gradient, cos, sin, back=True), torch.autograd.grad(turned, wide, gradient.double())[0], CLOSE[dtype])


@DTYPES
def test_extremes(ready: Kernels, dtype: torch.dtype) -> None:
    """Gates far from zero are open or shut, and what is no number stays that: the guards of training look for it."""
    gate = torch.tensor([[-1e30, -300.0, -80.0, 80.0, 300.0, 1e30, 0.0]]).to(dtype)
    up = torch.full_like(gate, 2.0)
    _, to_gate, to_up = ready.gate_back(torch.ones_like(gate), gate, up)
    for ours, expected in ((ready.gate(gate, up), 2 * gate.clamp_min(0)), (to_up, gate.clamp_min(0)),
                           (to_gate, torch.tensor([[0.0, 0, 0, 2, 2, 2, 1]]).to(dtype))):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    for bad in (torch.nan, torch.inf):
        spoilt = torch.ones(1, 20, dtype=dtype)
        spoilt[0, 17] = bad
        ones = torch.ones(20, dtype=dtype)
        assert not ready.gate(spoilt, spoilt).isfinite()[0, 17] and not ready.gate_back(spoilt, spoilt, spoilt)[1].isfinite()[0, 17]
        out, normed, inverse = ready.norm(spoilt, ones, 1e-5)
        assert not out.isfinite().all() and not ready.norm_back(spoilt, normed, inverse, ones).isfinite().all()
        assert not ready.rotate(spoilt.view(1, 1, 1, 20), ones.view(1, 1, 1, 20), ones.view(1, 1, 1, 20), back=False).isfinite().all()


def test_attention_passes_on_what_is_no_number(with_attention: Kernels) -> None:
    query, key = _random(40, 64), _random(40, 32)
    query[20, 5] = torch.nan
    documents = Documents([40])
    out, log_sums = with_attention.attention(query, key, key, documents.extent, Heads(2, 1, 32), scale=0.2, window=None)
    assert not out[20, :32].isfinite().any() and out[:20].isfinite().all() and out[20, 32:].isfinite().all()
    gradients = with_attention.attention_back(_random(40, 64), query, key, key, out, log_sums, documents.extent, Heads(2, 1, 32), scale=0.2,
                                              window=None)
    assert all(not one.isfinite().all() for one in gradients)


def _plain(documents: Documents, q: Tensor, k: Tensor, v: Tensor, heads: Heads, scale: float, window: int | None) -> Tensor:
    """Each document by itself, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for places, own in zip(documents.places_W.split(documents.lengths), documents.extent.owns.tolist(), strict=True):
        query = q[places].view(len(places), heads.query, -1).transpose(0, 1)
        key, value = (one[places].view(len(places), heads.key, -1).transpose(0, 1) for one in (k, v))
        key, value = (one.repeat_interleave(heads.query // heads.key, 0) for one in (key, value))
        back = torch.arange(len(places)).unsqueeze(1) - torch.arange(len(places))
        scores = (query @ key.transpose(1, 2) * scale).masked_fill((back < 0) | (back >= (window or len(places))), -torch.inf)
        out = out.index_add(0, places[own:], (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(places), -1)[own:])
    return out


@pytest.mark.parametrize(("lengths", "shared", "heads", "window"), [
    ([1], (), Heads(1, 1, 32), None),
    ([64, 63, 65, 2], (), Heads(9, 3, 64), None),
    ([300, 7], (), Heads(4, 4, 32), 50),
    ([200], (), Heads(2, 1, 96), 64),
    ([130], (), Heads(2, 2, 256), None),
    ([290, 600], (), Heads(3, 1, 64), None),  # several blocks of queries and chunks of keys, the last of them with some
    ([290, 700], (), Heads(2, 1, 32), 300),
    ([90, 650], (Shared(1, of=0, tokens=70),), Heads(2, 1, 32), 270),
    ([90, 150, 80, 40], (Shared(1, of=0, tokens=70), Shared(3, of=0, tokens=10)), Heads(6, 2, 64), None),
    ([90, 150], (Shared(1, of=0, tokens=70),), Heads(2, 1, 128), 33)])
def test_attention_of_documents(with_attention: Kernels, lengths: list[int], shared: tuple[Shared, ...], heads: Heads,
                                window: int | None) -> None:
    documents = Documents(lengths, shared=shared)
    rows = sum(lengths) - sum(one.tokens for one in shared)
    q, k, v = (_random(rows, number * heads.size, seed=seed) for seed, number in enumerate((heads.query, heads.key, heads.key)))
    gradient = _random(rows, heads.query * heads.size, seed=9)
    wide = [one.double().requires_grad_() for one in (q, k, v)]
    expected = _plain(documents, *wide, heads, 0.17, window)
    out, log_sums = with_attention.attention(q, k, v, documents.extent, heads, scale=0.17, window=window)
    _near(out, expected.detach(), 0.005)
    ours = with_attention.attention_back(gradient, q, k, v, out, log_sums, documents.extent, heads, scale=0.17, window=window)
    for one, other in zip(ours, torch.autograd.grad(expected, wide, gradient.double()), strict=True):
        assert (one.double() - other).norm() <= 0.01 * other.norm() + 1e-3  # of a single token queries and keys have none


def test_attention_of_large_scores_is_that_of_the_largest(with_attention: Kernels) -> None:
    query, documents = torch.full((70, 32), 30.0).bfloat16(), Documents([70])
    key, value = _random(70, 32), _random(70, 32, seed=2)
    out, _ = with_attention.attention(query, key, value, documents.extent, Heads(1, 1, 32), scale=10.0, window=None)
    best = torch.stack([key[: i + 1].double().sum(1).argmax() for i in range(70)])
    assert torch.equal(out, value[best])


def test_they_serve_dense_rows(ready: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, 8, dtype=torch.bfloat16)
    assert ready.serve(x, x[:, :4]) and ready.serve(x.float())
    assert not ready.serve(x, x.float()) and not ready.serve(x.double()) and not ready.serve(x.T) and not ready.serve(x.to("meta"))
    assert not ready.serve_attention(x, 48) and not ready.serve_attention(x, 512) and not ready.serve_attention(x.float(), 64)
    torch.set_num_threads(2)
    assert ready.serve(x) == ready.has_threads
    monkeypatch.setattr(ready, "has_threads", False)  # as compiled by another compiler than GCC
    assert not ready.serve(x), "torch's kernels share the work out among threads"


@pytest.fixture
def with_threads(ready: Kernels) -> Kernels:
    if not ready.has_threads:
        pytest.skip("compiled kernels run on one thread here: the compiler is not GCC, or torch has another OpenMP")
    return ready


@DTYPES
def test_threads_change_no_bit_of_rows(with_threads: Kernels, dtype: torch.dtype) -> None:
    """Rows enough to be shared out, and a number that no number of threads divides."""
    ready = with_threads
    gate, up, gradient, weight = (_random(rows, 160, dtype=dtype, seed=seed) for seed, rows in enumerate((467, 467, 467, 1)))
    heads, angles = _random(1, 3, 467, 160, dtype=dtype), _random(2, 1, 1, 467, 160, dtype=dtype)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out, normed, inverse = ready.norm(gate, weight[0], 1e-5)
        found.append([ready.gate(gate, up), *ready.gate_back(gradient, gate, up), out, normed, inverse,
                      ready.norm_back(gradient, normed, inverse, weight[0]), ready.weigh(gate, weight[0]),
                      *(ready.rotate(heads, *angles, back=back) for back in (False, True))])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize(("lengths", "shared"), [
    ([700], ()),  # a document whose heads are shared out
    ([65, 40] * 30, ()),  # documents enough that each thread has whole key heads
    ([90, 150, 80], (Shared(1, of=0, tokens=70), Shared(2, of=0, tokens=10))),
    ([90, *[80] * 40], [Shared(i, of=0, tokens=30) for i in range(1, 41)]),
    ([700, 650], (Shared(1, of=0, tokens=70),))])  # with eight threads the last four heads are cut in pieces
def test_threads_share_attention_out(with_attention: Kernels, with_threads: Kernels, lengths: list[int], shared: list[Shared]) -> None:
    documents, heads = Documents(lengths, shared=shared), Heads(6, 2, 64)
    rows = sum(lengths) - sum(one.tokens for one in shared)
    q, k, v, gradient = (_random(rows, number * 64, seed=seed) for seed, number in enumerate((6, 2, 2, 6)))
    found = []
    for threads in (1, 2, 3, 4, 8):  # six heads on four threads: four whole, and halves of two
        torch.set_num_threads(threads)
        out, log_sums = with_attention.attention(q, k, v, documents.extent, heads, scale=0.17, window=None)
        found.append([out, log_sums, *with_attention.attention_back(gradient, q, k, v, out, log_sums, documents.extent, heads, scale=0.17,
                                                                    window=None)])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0][:3], others[:3], strict=True))
        for one, other in zip(found[0][3:], others[3:], strict=True):  # keys and values add up their heads in another order
            _near(one, other, 1e-3)
    for threads, before in ((2, found[1]), (8, found[-1])):
        torch.set_num_threads(threads)
        again = with_attention.attention_back(gradient, q, k, v, *found[0][:2], documents.extent, heads, scale=0.17, window=None)
        assert all(torch.equal(one, other) for one, other in zip(before[2:], again, strict=True)), "whichever thread is first"


def test_threads_share_python_out(with_threads: Kernels) -> None:
    """Each thing once, without gradients; what it gave, in order."""
    torch.set_num_threads(2)
    x, seen = torch.randn(40, 30, requires_grad=True), [0] * 40
    out, threads = torch.empty(40, 30), set()

    def work(number: int) -> int:
        threads.add(threading.get_ident())
        seen[number] += 1
        torch.mm(x[number: number + 1], x[:30], out=out[number: number + 1])
        time.sleep(0.002)
        return number

    assert with_threads.each(work, range(40)) == list(range(40))
    assert seen == [1] * 40 and len(threads) == 2 and torch.is_grad_enabled()
    _near(out, x.detach() @ x.detach()[:30], 1e-6)


@pytest.mark.parametrize("error", [ValueError("no such number"), KeyboardInterrupt()])
def test_what_fails_on_another_thread_fails_here(with_threads: Kernels, error: BaseException) -> None:
    torch.set_num_threads(2)
    caller, done = threading.get_ident(), threading.Event()

    def work(_: int) -> None:
        if threading.get_ident() != caller:
            done.set()
            raise error
        done.wait(5)

    with pytest.raises(type(error)):
        with_threads.each(work, range(8))


def test_without_a_compiler_it_is_said_and_torch_computes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernels.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        with caplog.at_level(logging.INFO, logger="transllm.native"):
            assert kernels() is None and kernels() is None
            x = _random(3, 8)
            _RmsNorm.apply(x, x[0], 1e-5)
        assert [record.getMessage() for record in caplog.records] == [
            "training with torch's own kernels: no C compiler: $CC is no-such-compiler, which is not found"]
    finally:
        kernels.cache_clear()


@pytest.mark.parametrize(("name", "right", "broken"), [
    ("gate_back", "sigmoid + silu * (1.0f - sigmoid)", "sigmoid + silu"),
    ("norm_back", "- NAME(get)(quotient + i, n) * along", ""),
    ("rotate", "- sign * second", "+ sign * second")])
def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path,
                                                        name: str, right: str, broken: str) -> None:
    folder = Path(native.__file__).parent
    for file in [folder / "kernels.c", *folder.glob("*.h")]:
        shutil.copy(file, tmp_path)
    rows = (tmp_path / "rows.h").read_text(encoding="utf-8")
    assert right in rows
    (tmp_path / "rows.h").write_text(rows.replace(right, broken), encoding="utf-8")
    library = load(tmp_path / "kernels.c", folder=tmp_path / "kept")
    assert wrong(Kernels(library)) == [f"{name} in bfloat16", f"{name} in float32"]
    kernels.cache_clear()
    monkeypatch.setattr(native, "load", lambda source: library)
    try:
        assert kernels() is None and f"{name} in float32" in caplog.text
    finally:
        kernels.cache_clear()
