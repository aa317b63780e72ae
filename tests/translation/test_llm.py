"""Any engine of conversations translates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transllm.generation import Conversation, Reply, ReplySampling
from transllm.languages import LANGUAGES
from transllm.progress import Silent
from transllm.recipe.schema import TranslatorSettings
from transllm.translation import TextTranslator
from transllm.translation.llm import LLMTranslator

PROMPT = str(TranslatorSettings.model_fields["prompt"].default)


class Says:
    """An engine that answers with its conversation's last line, in capitals, quoted or cut."""

    name = "says"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        assert sampling.temperature == 0
        for index, conversation in reversed(list(enumerate(conversations))):
            (turn,) = conversation.turns
            self.asked.append(turn.content)
            line = turn.content.splitlines()[-1]
            text = f'"{line.upper()}"' if "quote" in line else line.upper()
            yield Reply(index, text, (), "length" if "long" in line else "stop", 1, 1)

    def close(self) -> None: ...


def test_a_chat_model_translates_lines() -> None:
    engine = Says()
    translator = LLMTranslator(engine, LANGUAGES["th"], prompt=PROMPT, max_new_tokens=64, identity={"model": "m"})
    texts = ["A {source} here. Another.\n- quote `x`", "too long"]
    made = TextTranslator(translator).translate(texts, to="target", progress=Silent(), label="")
    assert [one.text for one in made] == ["A {source} HERE. ANOTHER.\n- QUOTE `x`", "TOO LONG"]
    assert [one.cut for one in made] == [False, True] and not any(one.lost for one in made)
    assert all("from English into Thai" in asked for asked in engine.asked) and "A [1] here. Another." in engine.asked[-1]
    TextTranslator(translator).translate(["ก"], to="english", progress=Silent(), label="")
    assert "from Thai into English" in engine.asked[-1]
