"""Render conversations and chains into token ids, with the mask of what is trained built in the same stroke.

The chat model's own template stays as it is. Contents are cut out of it, so that each is encoded with the vocabulary of its
language and so that a marker which a user types stays plain text.

The forms of an answer (arXiv 2405.13923; ``<XX>`` is the target language's marker)::

    chain        <EN> query in English <RESPONSE> answer in English <XX> answer in the target language END
    recovery     <RESPONSE> answer in English END
    translation  <XX> text END   or   <RESPONSE> text END
    direct       <XX> answer in the target language END

So a query in English is always followed by its answer: a small model to which ``<EN> text END`` was a translation took many a query for
one, and ended. A translation has the form of an answer in its language; what is meant is never guessed from it: who wants a direct answer
forces its first marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from transllm.errors import ModelError
from transllm.tcot.guide import Form, Guide
from transllm.tokenizer import SpanTokenizer

Language = Literal["english", "target"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: its text.
        language: which vocabulary encodes it.
    """

    role: str
    content: str
    language: Language = "english"


@dataclass(frozen=True, slots=True)
class Span:
    """A marker and the text that it opens."""

    marker: int
    text: str
    language: Language


class Renderer:
    """Renders with one model's template and vocabularies.

    Args:
        spans: the tokenizers.

    Raises:
        ModelError: the template hides or repeats a message, or has no end of turn.
    """

    def __init__(self, spans: SpanTokenizer) -> None:
        self.spans = spans
        self._template = spans.original
        self.end_id = self._end_of_turn()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        eos = self._template.eos_token_id
        return frozenset({self.end_id, *([] if eos is None else [eos])})

    @property
    def fresh_ids(self) -> frozenset[int]:
        """Ids after which a text begins that may say again what was said: the markers."""
        return frozenset({self.spans.markers.english, self.spans.markers.response, self.spans.markers.target})

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant is to speak."""
        ids: list[int] = []
        before = space = ""
        pieces = _template_pieces(self._template, messages)
        for place, piece in enumerate(pieces):
            if isinstance(piece, Message):
                ids.extend(self._encode(space + piece.content.strip(), piece.language, after=before))
                before, space = piece.role, ""  # any text that is no control token
            else:
                # A space between the template's words and a message is a part of the message's first token.
                said = piece.rstrip(" ") if place + 1 < len(pieces) else piece
                ids.extend(self.spans.encode_control(said, after=before))
                before, space = said or before, piece[len(said):]
        return ids

    def row(self, messages: Sequence[Message], answer: Sequence[Span], *, end: bool = True) -> tuple[list[int], list[bool]]:
        """A training row: the prompt, not trained, then the answer and its end of turn (unless the answer was cut), trained.

        Returns:
            ids, and for each whether it is trained.
        """
        prompt = self.prompt(messages)
        said = self.answer(answer, end=end)
        return prompt + said, [False] * len(prompt) + [True] * len(said)

    def answer(self, spans: Sequence[Span], *, end: bool = True) -> list[int]:
        """Ids of an answer."""
        ids: list[int] = []
        for span in spans:
            ids.append(span.marker)
            ids.extend(self._encode(span.text, span.language))
        return [*ids, self.end_id] if end else ids

    def chain(self, *, query_en: str, answer_en: str, answer: str) -> list[Span]:
        """The spans of a translation chain-of-thought."""
        markers = self.spans.markers
        return [Span(markers.english, query_en, "english"), Span(markers.response, answer_en, "english"),
                Span(markers.target, answer, "target")]

    def guide(self, room: int, *, form: Form = "chain") -> Guide:
        """Keeps an answer of at most ``room`` tokens to its form while it is written."""
        return Guide(self.spans.markers, self.stop_ids, self.end_id, room, form)

    def recovery(self, answer_en: str) -> list[Span]:
        """The span of an English answer to an English query."""
        return [Span(self.spans.markers.response, answer_en, "english")]

    def direct(self, answer: str) -> list[Span]:
        """The span of an answer in the target language that no chain leads to."""
        return self.translation(answer, to="target")

    def translation(self, text: str, *, to: Language) -> list[Span]:
        """The span of a translation that a user asked for."""
        return [Span(self.spans.markers.target, text, to)] if to == "target" else self.recovery(text)

    def _encode(self, text: str, language: Language, *, after: str = "") -> list[int]:
        encode = self.spans.encode_english if language == "english" else self.spans.encode_target
        return encode(text, after=after)

    def _end_of_turn(self) -> int:
        """The first control token that the template writes after an assistant's words, else the end of text."""
        pieces = _template_pieces(self._template, [Message("user", "?"), Message("assistant", "!")], open_turn=False)
        tail = pieces[-1]
        # Many tokenizers give their end of turn no name such as eos; it is a control token all the same.
        added = self._template.added_tokens_decoder.items()
        special = {*self._template.all_special_ids, *(number for number, token in added if token.special)}
        if isinstance(tail, str):
            for token in self.spans.encode_control(tail, after="!"):
                if token in special:
                    return token
        eos = self._template.eos_token_id
        if eos is None:
            raise ModelError("The chat template writes no control token after an answer, and the tokenizer has no end-of-text token, "
                             "so the model could never stop. Set eos_token in its tokenizer_config.json.")
        return int(eos)


def _template_pieces(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, open_turn: bool = True) -> list[str | Message]:
    """The rendered template, cut where the contents stand: control text and messages, in order."""
    # Private-use characters: no template tests for them, none is white space that a template may trim.
    places = [f"\ue000{number}\ue001" for number in range(len(messages))]
    stand_ins = [{"role": message.role, "content": place} for message, place in zip(messages, places, strict=True)]
    try:
        rendered = str(tokenizer.apply_chat_template(stand_ins, tokenize=False, add_generation_prompt=open_turn))
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(f"The chat template refuses a conversation of the roles {roles}: {error}. "
                         "Leave the role out, or give another template with model: {chat_template: FILE}.") from error
    pieces: list[str | Message] = []
    for message, place in zip(messages, places, strict=True):
        if rendered.count(place) != 1:
            raise ModelError(f"The chat template shows a {message.role} message {rendered.count(place)} times; it must show it once. "
                             "Give a template that keeps every message with model: {chat_template: FILE}.")
        before, rendered = rendered.split(place)
        pieces.extend([before, message] if before else [message])
    return [*pieces, rendered] if rendered else pieces
