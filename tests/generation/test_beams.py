"""Beam search finds what transformers' own finds, and, with room for all beginnings, the best answer there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from transllm.generation import Generated, LocalEngine, Sampling
from transllm.generation.beams import BeamSearch

Make = Callable[..., PreTrainedModel]
STOPS = frozenset(range(4, 104))
NEW = 16


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(104, 320, (length,), generator=generator).tolist() for length in (1, 5, 17, 40, 3, 9, 12, 2, 30, 9)]


def _all(engine: LocalEngine, prompts: list[list[int]], sampling: Sampling) -> list[Generated]:
    found = sorted(engine.generate(prompts, sampling=sampling), key=lambda one: one.index)
    assert [one.index for one in found] == list(range(len(prompts)))
    return found


@pytest.mark.parametrize("batch_size", [4, 64])
@pytest.mark.parametrize("kind", ["tied", "sliding", "gemma2"])
def test_it_finds_what_transformers_finds_one_prompt_at_a_time(make_chat_model: Make, kind: str, batch_size: int) -> None:
    model = make_chat_model(kind)
    model.generation_config.eos_token_id = sorted(STOPS)
    engine = LocalEngine(model, pad_id=0, batch_size=batch_size)
    compared = 0
    for one in _all(engine, _prompts(), Sampling(NEW, stop_ids=STOPS, beams=3)):
        ids = torch.tensor([_prompts()[one.index]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=3, early_stopping=True,  # type: ignore[operator]
                                max_new_tokens=NEW, pad_token_id=0)
        theirs = output[0, ids.shape[1]:].tolist()
        if theirs[-1] in STOPS:  # where not all beams ended, theirs may be one that was cut; ours is one that ended, if there is one
            assert one.ids == theirs
            compared += 1
    assert compared >= 5


def test_with_room_for_all_it_finds_the_best() -> None:
    """Four words, one of which ends an answer; what comes next depends on the last word only."""
    gains = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1)  # the last row: the first word's
    search = BeamSearch([4], beams=4 ** 4, stop_ids=frozenset({0}))
    done = []
    while rows := search.said:
        parents, found = search.step(gains[[ids[-1] if ids else 4 for ids in rows]])
        done += found
        assert len(parents) == len(search.said)
    answers = [(*body, 0) for length in range(4) for body in itertools.product((1, 2, 3), repeat=length)]

    def quality(answer: tuple[int, ...]) -> float:
        return sum(float(gains[before, word]) for before, word in zip((4, *answer), answer, strict=False)) / len(answer)

    (best,) = done
    assert tuple(best.ids) == max(answers, key=quality)
    assert (best.place, best.finish) == (0, "stop")


def test_two_beams_take_back_a_word_that_leads_nowhere(make_chat_model: Make) -> None:
    """Greedy: 1, then nothing good. With two: 2, whose next word is sure."""
    first, after_1, after_2 = torch.tensor([0.0, 0.55, 0.45]), torch.tensor([0.34, 0.33, 0.33]), torch.tensor([0.98, 0.01, 0.01])
    for beams, answer in ((1, [1, 0]), (2, [2, 0])):
        search = BeamSearch([9], beams=beams, stop_ids=frozenset({0}))
        found = []
        while said := search.said:
            found += search.step(torch.stack([(first, after_1, after_2)[ids[-1] if ids else 0] for ids in said]).log())[1]
        assert [best.ids for best in found] == [answer]


def test_a_prompt_does_not_depend_on_its_company_nor_on_lanes(make_chat_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transllm.generation import local

    engine = LocalEngine(make_chat_model(), pad_id=0)
    sampling = Sampling(NEW, stop_ids=STOPS, beams=4, repetition_penalty=1.3)
    alone = [next(iter(engine.generate([prompt], sampling=sampling))).ids for prompt in _prompts()]
    together = [one.ids for one in _all(engine, _prompts(), sampling)]
    assert together == alone
    monkeypatch.setattr(local, "_ROWS_A_LANE", 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert [one.ids for one in _all(engine, _prompts(), sampling)] == alone
        assert [one.ids for one in _all(engine, _prompts()[:1], sampling)] == alone[:1], "beams enough for two lanes, and one prompt"
    finally:
        torch.set_num_threads(before)


def test_what_was_said_is_penalised_in_each_beam_by_itself(make_chat_model: Make) -> None:
    engine = LocalEngine(make_chat_model(), pad_id=0)
    free = _all(engine, _prompts(), Sampling(NEW, beams=2))
    held = _all(engine, _prompts(), Sampling(NEW, beams=2, repetition_penalty=50.0))
    assert min(len(set(one.ids)) for one in free) < NEW
    assert all(len(set(one.ids)) == NEW for one in held)


def test_limits_vocabulary_and_tokens_told(make_chat_model: Make) -> None:
    told: list[tuple[int, int]] = []
    engine = LocalEngine(make_chat_model(), pad_id=0, vocabulary=50)
    prompts = _prompts()
    limits = [1 + number for number in range(len(prompts))]
    found = sorted(engine.generate(prompts, sampling=Sampling(NEW, beams=3), limits=limits,
                                   on_token=lambda index, token: told.append((index, token))), key=lambda one: one.index)
    assert [len(one.ids) for one in found] == limits
    assert {one.finish for one in found} == {"length"}
    assert max(token for one in found for token in one.ids) < 50
    assert all([token for index, token in told if index == one.index] == one.ids for one in found)


@pytest.mark.parametrize("other", [{"temperature": 0.7}, {"guide": lambda ids, token: token}])
def test_beams_are_neither_sampled_nor_guided(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="beam search"):
        Sampling(4, beams=2, **other)  # type: ignore[arg-type]
