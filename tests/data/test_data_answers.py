"""The filter of answers, refusals and near-duplicates."""

from __future__ import annotations

import random

import pytest

from transllm.data.answers import AnswerFilter
from transllm.data.near import NearDuplicates
from transllm.data.refusals import is_refusal


@pytest.mark.parametrize("answer", [
    "I'm sorry, but I can't assist with that.", "I\u2019m sorry, I cannot help you with this request.", "Sorry, but I can't do that.",
    "I apologize, but I am unable to provide instructions for that.", "I cannot fulfill your request.", "I can't help with that.",
    "As an AI language model, I cannot have opinions about this.", "I'm sorry, but as an AI assistant, I don't have the ability to see it.",
    "I'm not able to provide medical advice.", "Unfortunately, I can't share that.", "I must respectfully decline.",
    "It is not appropriate to talk about people like this.", "I'm sorry, but it is illegal to make one at home.",
    "I do not feel comfortable writing that.", "I'm afraid I can't do that.", "I won't help to hurt somebody.",
    "I'm really sorry for the inconvenience, but I'm unable to open links.", "\"I cannot answer that.\""])
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", [
    "", "Paris.", "I'm sorry to hear that you are ill. Rest, and drink a lot.", "I can't wait to tell you about the sea!",
    "I cannot stress enough how important sleep is.", "Sorry is what we say when we regret something.", "As an AI, I love this question!",
    "I am able to help you with that.", "No, whales are mammals.", "It is not easy to say.", "You can't park there.",
    "Here is how: mix flour and water. I cannot promise that it will rise.", "As a teacher, I can tell you that it takes time.",
    "Unfortunately, the museum is closed on Mondays."])
def test_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


@pytest.mark.parametrize(("answer", "reason"), [
    ("", "empty"), ("and so it goes on " * 6, "repetition"), ("La capital de Francia es París, y es una ciudad muy bonita.", "not English"),
    ("The capital of France is Paris, which is a city of some two million people on the Seine.", None), ("París.", None),
    ("```python\nimport numpy\nprint(numpy.zeros(3))\n```", None), ("42", None)])
def test_reasons_to_drop_an_answer(answer: str, reason: str | None) -> None:
    assert AnswerFilter()(answer, cut=False) == reason


def test_cut_answers_stay_unless_asked() -> None:
    answer = "The capital of France is"
    assert AnswerFilter()(answer, cut=True) is None
    assert AnswerFilter(drop_cut=True)(answer, cut=True) == "cut" and AnswerFilter(drop_cut=True)(answer, cut=False) is None


def test_near_duplicate_answers() -> None:
    keep = AnswerFilter()
    long = "Rice is washed, then boiled in twice as much water for a quarter of an hour, until it is soft."
    refusal = "I'm sorry, but I can't help you with that, as it would not be right for me to do so at all."
    for answer in (long, refusal, "Yes, it is."):
        assert keep(answer, cut=False) is None
    assert keep(long.upper().replace("SOFT", "done"), cut=False) == "near-duplicate"
    assert keep(refusal, cut=False) is None and keep("Yes, it is.", cut=False) is None, "refusals and short answers are alike"
    assert AnswerFilter(near=None)(long, cut=False) is None


def test_near_duplicates_are_those_of_a_plain_search() -> None:
    draw = random.Random(4)
    words = [f"word{number}" for number in range(400)]
    texts: list[list[str]] = []
    for _ in range(300):
        texts.append(draw.sample(words, 20) if not texts or draw.random() < 0.5 else [
            draw.choice(words) if draw.random() < 0.08 else word for word in draw.choice(texts)])
    seen: list[set[str]] = []
    expected = []
    for text in texts:
        own = set(text)
        expected.append(any(len(own & other) >= 0.8 * len(own | other) for other in seen))
        if not expected[-1]:
            seen.append(own)
    near = NearDuplicates()
    found = [near.known(" ".join(text)) for text in texts]
    # MinHash misses some pairs, and what it misses is remembered: the two lists go apart a little, and never by much.
    assert 50 < sum(expected) < 200 and sum(one != other for one, other in zip(found, expected, strict=True)) <= 3
