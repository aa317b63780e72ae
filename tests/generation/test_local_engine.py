"""The engine writes what ``model.generate`` writes one prompt at a time, in batches of unlike lengths that shrink."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from transllm.errors import ModelError
from transllm.generation import Generated, LocalEngine, Sampling, local

Make = Callable[..., PreTrainedModel]
KINDS = ["tied", "padded", "sliding", "gemma2"]
NEW = 24


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(4, 320, (length,), generator=generator).tolist() for length in (1, 5, 17, 40, 3, 9, 12, 2, 30, 9)]


@pytest.fixture(scope="module")
def greedy(make_chat_model: Make) -> Callable[[str], list[list[int]]]:
    """What transformers' own greedy search writes, without stopping."""
    @functools.cache
    def make(kind: str) -> list[list[int]]:
        model = make_chat_model(kind)
        model.generation_config.eos_token_id = None
        made = []
        for prompt in _prompts():
            ids = torch.tensor([prompt])
            output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0)  # type: ignore[operator]
            made.append(output[0, len(prompt):].tolist())
        return made

    return make


def _all(engine: LocalEngine, prompts: list[list[int]], sampling: Sampling) -> list[Generated]:
    found = sorted(engine.generate(prompts, sampling=sampling), key=lambda one: one.index)
    assert [one.index for one in found] == list(range(len(prompts)))
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_one_at_a_time(make_chat_model: Make, greedy: Callable[[str], list[list[int]]], kind: str, batch_size: int) -> None:
    engine = LocalEngine(make_chat_model(kind), pad_id=0, batch_size=batch_size)
    found = _all(engine, _prompts(), Sampling(NEW))
    assert [one.ids for one in found] == greedy(kind)
    assert {one.finish for one in found} == {"length"}


def test_a_long_prompt_goes_ahead_of_many_short_ones(make_chat_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would pad all of them."""
    engine = LocalEngine(make_chat_model(), pad_id=0, batch_size=64)
    read: list[list[int]] = []
    prefill = engine._prefill

    def watched(prompts: Sequence[Sequence[int]]) -> Any:
        read.append([len(prompt) for prompt in prompts])
        return prefill(prompts)

    monkeypatch.setattr(engine, "_prefill", watched)
    short = [[7, 5 + number] for number in range(31)]
    found = _all(engine, [*short, [9] * 200], Sampling(4))
    assert read == [[200], [2] * 31]
    assert [one.ids for one in found[:31]] == [one.ids for one in _all(engine, short, Sampling(4))]


@pytest.mark.parametrize(("lengths", "extra", "size"), [
    ([3000, *[60] * 63], 2560, 1),
    ([70, *[60] * 63], 2560, 64),  # 630 tokens of padding are not worth a batch
    ([3000, 2900, *[60] * 62], 2560, 2),
    ([3000, 1500, *[60] * 62], 1000, 1),  # the two of the first cut are cut again
    ([3000] * 64, 2560, 21),  # no padding at all, but memory
    ([100_000, 50], 10**9, 1),
    ([1], 0, 1),
])
def test_a_batch_is_cut_where_padding_costs_more_than_steps(lengths: list[int], extra: int, size: int) -> None:
    assert local.batch_of(lengths, extra=extra) == size


@pytest.mark.parametrize("kind", KINDS)
def test_what_all_prompts_begin_with_is_read_once(make_chat_model: Make, kind: str) -> None:
    """Not where layers look back over so many places: places that pad would be among them."""
    model = make_chat_model(kind)
    head = list(range(20, 40))
    prompts = [head + prompt for prompt in _prompts()] + [[*head[:15], 7]]
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, given: read.append(given[0].numel()))
    together = _all(LocalEngine(model, pad_id=0), prompts, Sampling(NEW))
    first = read[:2]
    read.clear()
    alone = [_all(LocalEngine(model, pad_id=0), [prompt], Sampling(NEW))[0].ids for prompt in prompts]
    hook.remove()
    assert [one.ids for one in together] == alone
    assert first == [15, len(prompts) * 45] if kind in ("tied", "padded") else first[0] == len(prompts) * 60
    same = _all(LocalEngine(model, pad_id=0), [head, head], Sampling(NEW))  # nothing is left but the last token
    assert same[0].ids == same[1].ids == _all(LocalEngine(model, pad_id=0), [head], Sampling(NEW))[0].ids


@pytest.mark.parametrize("kind", ["tied", "padded", "sliding"])
def test_stop_ids_end_rows_and_the_others_go_on(make_chat_model: Make, greedy: Callable[[str], list[list[int]]], kind: str) -> None:
    expected = greedy(kind)
    stops = frozenset({expected[1][3], expected[3][7], expected[5][0]})
    cut = []
    for ids in expected:
        end = next((place + 1 for place, token in enumerate(ids) if token in stops), NEW)
        cut.append((ids[:end], "stop" if ids[end - 1] in stops else "length"))
    assert len({len(ids) for ids, _ in cut}) > 2, "rows end at different times"
    found = _all(LocalEngine(make_chat_model(kind), pad_id=0), _prompts(), Sampling(NEW, stop_ids=stops))
    assert [(one.ids, one.finish) for one in found] == cut


def test_only_the_vocabulary_is_written(make_chat_model: Make) -> None:
    model = make_chat_model("padded")
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():  # a padding row that would win everywhere
        model.get_output_embeddings().weight[rows - 1] = model.get_output_embeddings().weight[7] * 50
        model.get_output_embeddings().weight[rows - 2] = model.get_output_embeddings().weight[7] * -50
    free = _all(LocalEngine(model, pad_id=0), _prompts(), Sampling(5))
    assert any(max(one.ids) >= 320 for one in free)
    held = _all(LocalEngine(model, pad_id=0, vocabulary=320), _prompts(), Sampling(5))
    assert all(max(one.ids) < 320 for one in held)
    sampled = _all(LocalEngine(model, pad_id=0, vocabulary=320), _prompts(), Sampling(5, temperature=3.0))
    assert all(max(one.ids) < 320 for one in sampled)


def test_the_context_is_never_left(make_chat_model: Make) -> None:
    engine = LocalEngine(make_chat_model("tied"), pad_id=0)
    found = _all(engine, [[5] * 250, [6] * 255, [7]], Sampling(NEW))
    assert [len(one.ids) for one in found] == [6, 1, NEW]
    assert [one.finish for one in found] == ["length"] * 3
    for prompt in ([5] * 256, []):
        with pytest.raises(ModelError, match="Prompt 1 has"):
            list(engine.generate([[3], prompt], sampling=Sampling(4)))


def test_positions_of_rows_that_are_done_stay_in_the_context() -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()
    # One row of nine is done after two tokens: fewer than an eighth, so it stays in the batch.
    found = _all(LocalEngine(model, pad_id=0), [[1] * 30, *([2] * 3 for _ in range(8))], Sampling(20))
    assert [len(one.ids) for one in found] == [2, *[20] * 8]


def test_sampling_follows_its_seed(make_chat_model: Make) -> None:
    engine = LocalEngine(make_chat_model("tied"), pad_id=0, batch_size=4)
    first, again, other = (
        [one.ids for one in _all(engine, _prompts(), Sampling(8, temperature=1.0, top_p=0.95, seed=seed))] for seed in (1, 1, 2))
    assert first == again != other
    greedy = [one.ids for one in _all(engine, _prompts(), Sampling(8))]
    assert first != greedy
    assert [one.ids for one in _all(engine, _prompts(), Sampling(8, temperature=1.0, top_p=1e-6, seed=3))] == greedy


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_what_is_sampled_for_a_prompt_does_not_depend_on_its_company(make_chat_model: Make, top_p: float) -> None:
    prompts, sampling = _prompts(), Sampling(8, temperature=1.0, top_p=top_p, seed=5)
    together = [one.ids for one in _all(LocalEngine(make_chat_model("tied"), pad_id=0), prompts, sampling)]
    few = LocalEngine(make_chat_model("tied"), pad_id=0, batch_size=3)
    assert [one.ids for one in _all(few, prompts[::-1], sampling)][::-1] == together
    assert [one.ids for one in _all(few, prompts[4:6], sampling)] == together[4:6]


def test_one_prompt_again_and_again_is_answered_differently(make_chat_model: Make) -> None:
    found = _all(LocalEngine(make_chat_model("tied"), pad_id=0), [[5, 6]] * 20, Sampling(8, temperature=1.0))
    assert len({tuple(one.ids) for one in found}) == 20


def test_sampling_keeps_to_the_smallest_set(make_chat_model: Make) -> None:
    model, prompt = make_chat_model("tied"), [9, 8, 7]
    with torch.no_grad():
        probabilities = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    ordered, places = probabilities.sort(descending=True)
    count = int((ordered.cumsum(0) < 0.3).sum()) + 1
    allowed = set(places[:count].tolist())
    assert 3 <= count < 100
    engine = LocalEngine(model, pad_id=0, batch_size=400)
    drawn = [one.ids[0] for one in _all(engine, [prompt] * 400, Sampling(1, temperature=0.7, top_p=0.3))]
    assert set(drawn) <= allowed and len(set(drawn)) > 1
    share = drawn.count(int(places[0])) / 400
    assert share == pytest.approx(float(ordered[0] / ordered[:count].sum()), abs=0.12)


def test_tokens_are_handed_on_as_they_come(make_chat_model: Make) -> None:
    engine = LocalEngine(make_chat_model("tied"), pad_id=0, batch_size=4)
    seen: list[tuple[int, int]] = []
    for one in engine.generate(_prompts(), sampling=Sampling(6), on_token=lambda row, token: seen.append((row, token))):
        assert [token for row, token in seen if row == one.index] == one.ids, "all of an answer is handed on before it is yielded"
    assert len(seen) == 60
    batch = [row for row, _ in seen[:24]]
    assert batch[:4] == batch[4:8] and len(set(batch[:4])) == 4, "rows of a batch come in turns"


def test_nothing_in_nothing_out(make_chat_model: Make) -> None:
    assert list(LocalEngine(make_chat_model("tied"), pad_id=0).generate([], sampling=Sampling(4))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_cache_that_outgrows_its_room(make_chat_model: Make, greedy: Callable[[str], list[list[int]]], kind: str,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transllm.generation.cache._BLOCK", 5)
    assert [one.ids for one in _all(LocalEngine(make_chat_model(kind), pad_id=0, batch_size=4), _prompts(), Sampling(NEW))] == greedy(kind)


def test_prompts_may_have_limits_of_their_own(make_chat_model: Make) -> None:
    limits = [1, 9, 4, 2, 50, 3, 7, 1, 5, 6]
    engine = LocalEngine(make_chat_model("tied"), pad_id=0)
    found = sorted(engine.generate(_prompts(), sampling=Sampling(12), limits=limits), key=lambda one: one.index)
    assert [len(one.ids) for one in found] == [min(limit, 12) for limit in limits]
    free = _all(engine, _prompts(), Sampling(12))
    assert [one.ids for one in found] == [one.ids[:limit] for one, limit in zip(free, limits, strict=True)]


def test_a_guide_has_the_last_word(make_chat_model: Make) -> None:
    """The token that it writes is the one that the model goes on from, and what the model had chosen is noted at its place."""
    model = make_chat_model("untied")
    prompts = _prompts()
    free = {row.index: row.ids for row in _all(LocalEngine(model, pad_id=0), prompts, Sampling(6))}
    seen: list[tuple[tuple[int, ...], int]] = []

    def guide(ids: Sequence[int], token: int) -> int:
        seen.append((tuple(ids), token))
        return 7 if len(ids) == 2 else token

    for batch_size in (1, 2, len(prompts)):
        seen.clear()
        for row in _all(LocalEngine(model, pad_id=0, batch_size=batch_size), prompts, Sampling(6, guide=guide)):
            assert row.ids[:3] == [*free[row.index][:2], 7]
            assert row.overruled == ({} if free[row.index][2] == 7 else {2: free[row.index][2]})
            on = [*prompts[row.index], *row.ids[:3]]
            assert row.ids[3:] == _all(LocalEngine(model, pad_id=0), [on], Sampling(3))[0].ids
            assert (tuple(row.ids[:5]), row.ids[5]) in seen


def test_a_guide_can_end_answers_and_batches_shrink(make_chat_model: Make) -> None:
    engine = LocalEngine(make_chat_model("untied"), pad_id=0)
    ends = Sampling(20, stop_ids=frozenset({7}), guide=lambda ids, token: 7 if len(ids) == 1 + len(ids) % 2 * 4 else token)
    assert {(row.ids[-1], row.finish) for row in _all(engine, _prompts(), ends)} == {(7, "stop")}


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, and lanes from two rows on."""
    monkeypatch.setattr(local, "_ROWS_A_LANE", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("side_by_side")
@pytest.mark.parametrize("batch_size", [4, 64])
def test_lanes_write_what_one_batch_writes(make_chat_model: Make, greedy: Callable[[str], list[list[int]]], batch_size: int) -> None:
    seen: set[str] = set()

    def on_token(*_: int) -> None:
        seen.add(threading.current_thread().name)

    engine = LocalEngine(make_chat_model("tied"), pad_id=0, batch_size=batch_size)
    found = sorted(engine.generate(_prompts(), sampling=Sampling(NEW), on_token=on_token), key=lambda one: one.index)
    assert [one.ids for one in found] == greedy("tied")
    assert {"lane_0", "lane_1"} <= seen


@pytest.mark.usefixtures("side_by_side")
def test_lanes_stop_when_nobody_listens_and_tell_of_errors(make_chat_model: Make) -> None:
    engine = LocalEngine(make_chat_model("tied"), pad_id=0)
    written = 0

    def on_token(*_: int) -> None:
        nonlocal written
        written += 1

    answers = engine.generate(_prompts(), sampling=Sampling(900), limits=[1] + [900] * (len(_prompts()) - 1), on_token=on_token)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert written < 900 and not [one for one in threading.enumerate() if one.name.startswith("lane")]

    def guide(ids: Sequence[int], token: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _all(engine, _prompts(), Sampling(3, guide=guide))


def _penalised_by_hand(model: PreTrainedModel, prompt: list[int], penalty: float, fresh: int) -> list[int]:
    """Greedy decoding of one prompt, a whole forward pass for each token, with the penalty as its paper has it."""
    ids, start = list(prompt), len(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        for token in set(ids[start:]):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        ids.append(int(logits.argmax()))
        if ids[-1] == fresh:
            start = len(ids)
    return ids[len(prompt):]


def test_repetition_penalty_counts_from_the_last_fresh_id(make_chat_model: Make, greedy: Callable[[str], list[list[int]]]) -> None:
    model = make_chat_model("tied")
    plain = [ids for ids in greedy("tied") if len(set(ids)) < NEW]
    assert plain, "some answer repeats itself, or there is nothing to see"
    engine = LocalEngine(model, pad_id=0)
    first = _all(engine, _prompts(), Sampling(NEW, repetition_penalty=1.5))
    fresh = first[3].ids[5]
    assert any(made.ids != ids for made, ids in zip(first, greedy("tied"), strict=True))
    found = _all(engine, _prompts(), Sampling(NEW, repetition_penalty=1.5, fresh_ids=frozenset({fresh})))
    assert [made.ids for made in found] == [_penalised_by_hand(model, prompt, 1.5, fresh) for prompt in _prompts()]
    assert any(made.ids != other.ids for made, other in zip(found, first, strict=True)), "a fresh start changes what follows"
