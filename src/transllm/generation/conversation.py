"""What an engine of whole conversations is: messages in, replies out, in any order, as they are done.

``Engine`` (engine.py) continues token ids, which chains and translations need: markers are ids. Recovery needs only what the *original*
chat model says, and any program can say it: a library in this process, a server, many machines. So this interface speaks in text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "too long"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far, and whose turn it is.

    Attributes:
        turns: the messages. May be empty where the user is to speak first.
        speaker: who speaks next. ``user`` asks the chat model for the user's turn: it is given its template up to where the user's words
            begin and writes them (Magpie, arXiv 2406.08464). Not every server can do that.
        draw: which of the replies to this conversation is wanted, where they are sampled: another number, another reply. With the same
            number it is the same one, in whatever call.
    """

    turns: tuple[Turn, ...] = ()
    speaker: Literal["assistant", "user"] = "assistant"
    draw: int = 0


def numbered(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Tell equal conversations of a call apart by their ``draw``; those that differ already stay as they are.

    So they can be cut into several calls, and the replies are those of one.
    """
    taken: set[Conversation] = set()
    following: dict[Conversation, int] = {}
    found = []
    for conversation in conversations:
        draw = following.get(conversation, conversation.draw)
        while (one := replace(conversation, draw=draw)) in taken:
            draw += 1
        following[conversation] = draw + 1
        taken.add(one)
        found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class ReplySampling:
    """How to decode a reply.

    Attributes:
        max_new_tokens: after so many it is cut.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this share of the probability.
        seed: of the sampling. Equal conversations of one call get different replies (``numbered``), and the same ones in a second call.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Attributes:
        index: number of its conversation.
        text: what was said, without control tokens, stripped.
        ids: its tokens, without the one that ends it; empty where the engine does not tell.
        finish: "stop" at the end of a turn, "length" if it was cut, "too long" if the conversation left no room (then the text is empty).
        prompt_tokens: of the conversation, with its template.
        tokens: that were generated, with the one that ends it.
    """

    index: int
    text: str
    ids: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    tokens: int


class ConversationEngine(Protocol):
    """Anything that goes on with conversations."""

    name: str

    def generate(self, conversations: Sequence[Conversation], *, sampling: ReplySampling) -> Iterator[Reply]:
        """Go on with each conversation.

        Yields:
            Each reply when it is done, not in order; one for each conversation.

        Raises:
            ModelError: the engine cannot do what is asked (such as to speak as the user), or it failed for good.
        """
        ...

    def close(self) -> None:
        """Give back memory, processes and connections."""
        ...


def reply_seeds(conversations: Sequence[Conversation], seed: int) -> list[int]:
    """A seed of 31 bits for each conversation, of what it says and of how often it came before: not of its place or its neighbours."""
    digests = (blake2b(repr((seed, one)).encode("utf-8", "surrogatepass"), digest_size=4).digest() for one in numbered(conversations))
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]
