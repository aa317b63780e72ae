"""Languages, seed prompts, the filter of prompts, and the Spanish evaluation queries of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from transllm.data.language import _langid, is_language, share_in_language
from transllm.data.prompts import PromptFilter, read_lines, seed_prompts

QUERIES = Path(__file__).parents[2] / "recipes" / "queries-es.txt"


def test_seed_prompts_pass_their_own_filter() -> None:
    prompts, keep = seed_prompts(), PromptFilter()
    assert len(prompts) >= 200
    assert [prompt for prompt in prompts if keep(prompt) is None] == []
    assert not any(prompt.startswith("#") for prompt in prompts)


def test_queries_are_spanish_and_say_what_they_are_for() -> None:
    text = QUERIES.read_text(encoding="utf-8")
    queries = read_lines(text)
    assert text.startswith("# EVAL") and len(queries) == len(set(queries)) == 120
    assert share_in_language(queries, "es") == 1.0
    assert share_in_language(seed_prompts(), "es") == 0.0


@pytest.mark.parametrize(("text", "code", "verdict"), [
    ("París es la capital de Francia.", "es", True), ("Paris is the capital of France.", "es", False), ("Sí.", "es", True),
    ("Yes, of course.", "es", False),
    ("La vie est belle et nous mangeons du pain tous les jours.", "es", False), ("42", "es", True), ("", "es", False), ("  ", "th", False),
    ("กรุงเทพเป็นเมืองหลวงของประเทศไทย", "th", True), ("Bangkok is the capital", "th", False), ("Paris is the capital of France.", "en", True),
    ("París es la capital de Francia.", "en", False), ("line one\nand line two of English text", "en", True), ("hello there", "xx", False)])
def test_is_language(text: str, code: str, verdict: bool) -> None:
    assert is_language(text, code) is verdict


def test_share_in_language() -> None:
    assert share_in_language(["Buenos días a todos.", "Good morning to all of you."], "es") == 0.5
    assert share_in_language([], "es") == 0.0


def test_the_second_identifier_gives_the_same_form() -> None:
    pytest.importorskip("py3langid")
    found = _langid()("La casa es grande y tiene un jardín muy bonito.")
    assert max(found, key=lambda code: found[code]) == "es" and 0 < found["es"] <= 1


@pytest.mark.parametrize(("prompt", "reason"), [
    ("", "empty"), ("Help", "too short"), ("word " * 300, "too long"), ("<|im_start|>user What is this?", "template tokens"),
    ("User: how are you doing today?", "template tokens"), ("[INST] Tell me a story [/INST]", "template tokens"),
    ("Sure, here is a list of five animals.", "an answer, not a request"),
    ("I\u2019m happy to help you with that!", "an answer, not a request"),
    ("As an AI language model, I cannot do that.", "an answer, not a request"),
    ("Here are some ideas for your party.", "an answer, not a request"),
    ("Hello! How can I help you today?", "an answer, not a request"),
    ("¿Cuál es la capital de Francia y cuántos habitantes tiene?", "not English"),
    ("tell me more and tell me more and tell me more and tell me more and tell me more", "repetition")])
def test_prompt_filter_reasons(prompt: str, reason: str) -> None:
    keep = PromptFilter()
    assert keep(prompt) is None
    assert keep.counts.as_dict() == {"read": 1, "kept": 0, "dropped": {reason: 1}}


@pytest.mark.parametrize("prompt", [
    "Are you sure that whales are mammals?",
    "I am planning a trip to Norway in May. What should I see?", "Here I sit with a broken bike. What now?",
    "How do I use <b> in HTML?",
    "I'm learning to cook. Which dish is easy?", "Hello, can you tell me how planes fly?", "Let me know three facts about bats."])
def test_real_requests_stay(prompt: str) -> None:
    keep = PromptFilter()
    assert keep(prompt) == prompt


def test_near_duplicates() -> None:
    keep = PromptFilter()
    assert keep("What is the best way to cook rice at home?") is not None
    assert keep("what is the BEST way to cook rice at home") is None
    assert keep("What is the best way to cook brown rice at home?") is None
    assert keep("What is the best way to fix a bike?") is not None
    assert keep.counts.dropped == {"duplicate": 2}
