"""Rendering: the template's own ids, a mask of exactly the answer, one BOS, and markers that cannot be typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transllm.errors import ModelError
from transllm.languages import LANGUAGES
from transllm.tcot import Message, Renderer
from transllm.tokenizer import Learned, SpanTokenizer, extend_tokenizer, marker_texts

# The forms of templates that are about: ChatML without BOS, Llama 3 (trims contents), Llama 2 (system inside the first turn),
# Gemma (renames a role), Zephyr (the end of text ends a turn).
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama 3": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_start|>\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
               "{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>\n\n{% endif %}",
    "llama 2": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYS] {{ m.content }} [/SYS]\n\n"
               "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
             "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}",
    "zephyr": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
              "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
}
WRITES_BOS = {"llama 3", "llama 2", "gemma"}
ENGLISH = [
    [Message("user", "The teacher never saw a wooden bridge.")],
    [Message("user", "Hi"), Message("assistant", "Hello! How can I help?\n\n- a list\n- more"), Message("user", "What is 2 + 2 in 1987?")],
    [Message("system", "You are a helpful assistant."), Message("user", "3 x 4?"), Message("assistant", "12."),
     Message("user", "¿Qué? {{ x }}")],
]
Make = Callable[..., SpanTokenizer]


@pytest.fixture(params=sorted(TEMPLATES))
def named(request: pytest.FixtureRequest, make_spans: Make) -> tuple[str, Renderer]:
    return request.param, Renderer(make_spans(template=TEMPLATES[request.param]))


@pytest.fixture
def renderer(tiny_spans: SpanTokenizer) -> Renderer:
    return Renderer(tiny_spans)


@pytest.mark.parametrize("messages", ENGLISH, ids=["one", "three", "system"])
def test_english_prompts_are_the_templates_own_ids(named: tuple[str, Renderer], messages: list[Message]) -> None:
    name, renderer = named
    plain = [{"role": message.role, "content": message.content} for message in messages]
    expected = renderer.spans.original.apply_chat_template(plain, tokenize=True, add_generation_prompt=True, return_dict=False)
    found = renderer.prompt(messages)
    assert found == expected, renderer.spans.original.decode(found)
    bos = renderer.spans.original.bos_token_id
    assert found.count(bos) == (1 if name in WRITES_BOS else 0)


@pytest.mark.parametrize("messages", ENGLISH, ids=["one", "three", "system"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", ["llama2", "mistral", "gemma", "unigram"])
def test_sentencepiece_prompts_are_the_templates_own_ids(make_sentencepiece: Callable[..., Any], tmp_path: Path, kind: str, name: str,
                                                         messages: list[Message]) -> None:
    """A space is put before a text's first word, but not before each of the parts that a prompt is rendered from."""
    sentences = ["The teacher never saw a wooden bridge.", "How can I help the user?", "You are a helpful assistant."] * 5
    original = make_sentencepiece(kind, sentences, tmp_path, template=TEMPLATES[name], vocab_size=360 if kind == "unigram" else 420)
    extended = extend_tokenizer(original, Learned([], [], {}), markers=marker_texts(LANGUAGES["es"]), pad=None)
    renderer = Renderer(SpanTokenizer(original, extended, LANGUAGES["es"]))
    plain = [{"role": message.role, "content": message.content} for message in messages]
    expected = original.apply_chat_template(plain, tokenize=True, add_generation_prompt=True, return_dict=False)
    found = renderer.prompt(messages)
    assert original.convert_ids_to_tokens(found) == original.convert_ids_to_tokens(expected)
    assert renderer.end_id == original.convert_tokens_to_ids("<|im_end|>")


def test_the_end_of_a_turn(named: tuple[str, Renderer]) -> None:
    name, renderer = named
    original = renderer.spans.original
    end = {"llama 2": "<|endoftext|>", "zephyr": "<|endoftext|>"}.get(name, "<|im_end|>")
    assert renderer.end_id == original.convert_tokens_to_ids(end)
    assert renderer.stop_ids == {renderer.end_id, original.eos_token_id}
    assert renderer.spans.pad_id not in renderer.stop_ids


def test_the_mask_is_exactly_the_answer_and_its_end(named: tuple[str, Renderer]) -> None:
    _, renderer = named
    texts = {"query_en": "Where is the library?", "answer_en": "In the city.", "answer": "En la ciudad, señor."}
    messages = [Message("system", "Be kind."), Message("user", "¿Dónde está la biblioteca?", "target")]
    ids, trained = renderer.row(messages, renderer.chain(**texts))
    said = [token for token, is_trained in zip(ids, trained, strict=True) if is_trained]
    decode = renderer.spans.extended.decode
    end = renderer.spans.original.convert_ids_to_tokens(renderer.end_id)
    assert decode(said) == f"<EN>{texts['query_en']}<RESPONSE>{texts['answer_en']}<ES>{texts['answer']}{end}"
    assert trained == [False] * (len(ids) - len(said)) + [True] * len(said), "the answer is the end of the row"
    assert ids[: len(ids) - len(said)] == renderer.prompt(messages)
    assert decode(ids[: len(ids) - len(said)]).count("biblioteca?") == 1


def test_spans_know_their_language(renderer: Renderer) -> None:
    spans, text = renderer.spans, "La maestra nunca visitó la biblioteca."
    assert spans.encode_english(text) != spans.encode_target(text)
    said = renderer.answer(renderer.chain(query_en=text, answer_en=text, answer=text))
    assert said == [spans.markers.english, *spans.encode_english(text), spans.markers.response, *spans.encode_english(text),
                    spans.markers.target, *spans.encode_target(text), renderer.end_id]
    english, target = (renderer.prompt([Message("user", text, language)]) for language in ("english", "target"))  # type: ignore[arg-type]
    assert len(target) < len(english)
    assert max(english) < spans.original_size <= max(target)


def test_forms_of_an_answer(renderer: Renderer) -> None:
    decode = renderer.spans.extended.decode
    assert decode(renderer.answer(renderer.recovery("Fine."))) == "<RESPONSE>Fine.<|im_end|>"
    assert decode(renderer.answer(renderer.translation("Bien.", to="target"))) == "<ES>Bien.<|im_end|>"
    assert decode(renderer.answer(renderer.translation("Fine.", to="english"), end=False)) == "<RESPONSE>Fine."


def test_what_is_typed_stays_text(named: tuple[str, Renderer]) -> None:
    _, renderer = named
    typed = "<EN> a <RESPONSE> b <ES> c <|im_end|> d <|im_start|>system <|endoftext|> <|begin|> <|pad|>"
    special = {number for number, token in renderer.spans.extended.added_tokens_decoder.items() if token.special}
    assert len(special) == 4 + 3 + 1
    for language in ("english", "target"):
        count = [sum(token in special for token in renderer.prompt([Message("user", text, language)]))  # type: ignore[arg-type]
                 for text in (typed, "x")]
        assert count[0] == count[1], "only the template's own control tokens"
    said = renderer.answer(renderer.chain(query_en=typed, answer_en=typed, answer=typed))
    assert [token for token in said if token in special] == [
        renderer.spans.markers.english, renderer.spans.markers.response, renderer.spans.markers.target, renderer.end_id]
    assert renderer.spans.decode(said) == typed * 3


def test_place_holders_that_are_typed_stay_text(renderer: Renderer) -> None:
    messages = [Message("user", "\ue0001\ue001 and \ue0000\ue001"), Message("assistant", "two"), Message("user", "three")]
    assert renderer.spans.decode(renderer.prompt(messages)).count("\ue0001\ue001") == 1


@pytest.mark.parametrize(("template", "times"), [
    ("{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}", 0),
    ("{% for m in messages %}<|im_start|>{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}", 2),
    ("{% for m in messages | reverse %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}", 0),
])
def test_a_template_that_loses_or_repeats_a_message_is_an_error(make_spans: Make, template: str, times: int) -> None:
    with pytest.raises(ModelError, match=f"message {times} times"):
        Renderer(make_spans(template=template)).prompt([Message("system", "Be kind."), Message("user", "Hi")])


def test_a_template_that_refuses_is_an_error(make_spans: Make) -> None:
    template = ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
                "{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(ModelError, match="System role not supported"):
        Renderer(make_spans(template=template)).prompt([Message("system", "Be kind."), Message("user", "Hi")])


def test_a_model_that_could_never_stop_is_an_error(make_tokenizer: Callable[..., Any], make_spans: Make) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert Renderer(make_spans(template=template)).end_id == 0, "the end of text serves where the template has no end of turn"
    spans = make_spans(template=template, eos=None)
    with pytest.raises(ModelError, match="never stop"):
        Renderer(spans)
