"""The replies of *recover*: the original model's, on disk as they come, in rounds over all conversations.

A round asks for the same turn of every conversation that is still open, so batches stay full. What a round says is complete before the
next one begins, and the filters see it in an order that does not depend on how it came: a run that was stopped ends like one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from transllm.data.answers import AnswerFilter
from transllm.data.near import NearDuplicates
from transllm.data.prompts import PromptFilter
from transllm.data.refusals import is_refusal
from transllm.data.split import text_key
from transllm.files import JsonLines, read_jsonl
from transllm.generation.conversation import Conversation, ConversationEngine, ReplySampling, Role, Turn
from transllm.pipeline.prompting import user_sampling
from transllm.pipeline.stage import Context
from transllm.recipe.schema import Recover

TOO_LONG = "longer than the context"


@dataclass
class Talk:
    """A conversation as it grows.

    Attributes:
        key: a hash of its first prompt.
        first: its first prompt, with ``origin``, ``held_out`` and ``delicate``.
        system: the system prompt, or None.
        length: turns that it may have.
        said: messages so far, the user's last one included.
    """

    key: str
    first: dict[str, Any]
    system: str | None
    length: int
    said: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def begin(cls, first: dict[str, Any], settings: Recover, systems: Sequence[str]) -> Talk:
        """What a conversation gets is decided by the hash of its first prompt: the same in any order, run and sitting."""
        key = text_key(first["prompt"])
        plain = first["held_out"]
        system = None if plain or not systems or _place(key, "system") >= settings.system_share else \
            systems[int(_place(key, "which system") * len(systems))]
        single = plain or first["delicate"] or _place(key, "turns") >= settings.multi_turn
        length = 1 if single else 2 + int(_place(key, "length") * (settings.most_turns - 1))
        return cls(key, first, system, length, [{"role": "user", "content": first["prompt"]}])

    @property
    def turn(self) -> int:
        """The number of the turn that was said last, from 0."""
        return (len(self.said) - 1) // 2

    def row(self, name: str) -> dict[str, Any]:
        """What is known of the turn that the user said last, before it is answered."""
        return {"id": f"{self.key}-{self.turn}-{name}", "system": self.system, "history": self.said[:-1],
                "prompt": self.said[-1]["content"], **{key: self.first[key] for key in ("origin", "held_out", "delicate")}}


class Replies:
    """What the engine said so far (``replies.jsonl``); what is there already is not asked again.

    Args:
        context: of the stage.
        engine: speaks.
    """

    def __init__(self, context: Context, engine: ConversationEngine) -> None:
        self._file = context.folder / "replies.jsonl"
        self._progress, self._engine = context.progress, engine
        self._known = {row["id"]: row for row in read_jsonl(self._file)}

    def to(self, rows: Sequence[dict[str, Any]], sampling: ReplySampling, *, label: str,
           speaker: Literal["assistant", "user"] = "assistant") -> list[dict[str, Any]]:
        """The rows, each with ``text``, ``finish`` and ``tokens`` of its reply.

        Args:
            speaker: ``user`` asks for the turn after the prompt's ``answer``.

        Raises:
            ModelError: the engine failed; what it said before is kept.
        """
        waiting = [row for row in rows if row["id"] not in self._known]
        asked = [_conversation(row, speaker) for row in waiting]
        unit = "answers" if speaker == "assistant" else "prompts"
        with JsonLines(self._file) as lines, self._progress.task(label, len(rows), unit) as bar:
            bar.advance(len(rows) - len(waiting))
            for reply in self._engine.generate(asked, sampling=sampling) if asked else ():
                told = {"id": waiting[reply.index]["id"], "text": reply.text, "finish": reply.finish, "tokens": reply.tokens}
                lines.write(told)
                self._known[told["id"]] = told
                bar.advance(1)
        return [row | {key: self._known[row["id"]][key] for key in ("text", "finish", "tokens")} for row in rows]


def converse(context: Context, replies: Replies, talks: Sequence[Talk], keep: PromptFilter) -> list[dict[str, Any]]:
    """Hold the conversations, round by round.

    Args:
        talks: in the order in which the filters are to see them; they grow.
        keep: the filter of the users' later turns.

    Returns:
        A row for each answer, the dropped ones with a ``reason``.
    """
    settings, seed = context.recipe.recover, context.recipe.seed
    judge = _judge(settings)
    rows: list[dict[str, Any]] = []
    open_talks = list(talks)
    for turn in range(settings.most_turns):
        if turn and open_talks:
            open_talks = _next_turns(context, replies, open_talks, keep)
        if not open_talks:
            break
        label = "conversations" + (f", turn {turn + 1}" if turn else "")
        made = replies.to([talk.row("0") for talk in open_talks], _sampling(settings, settings.temperature, seed), label=label)
        rows += (made := [_answered(row, judge) for row in made])
        for talk, row in zip(open_talks, made, strict=True):
            talk.said.append({"role": "assistant", "content": row["answer"]})
        open_talks = [talk for talk, row in zip(open_talks, made, strict=True)
                      if talk.length > turn + 1 and not row["reason"] and row["finish"] == "stop"]
    again = [row for row in rows if not row["held_out"]] if settings.temperature else []
    for number in range(1, settings.answers):
        made = replies.to([_asked(row, str(number)) for row in again], _sampling(settings, settings.temperature, seed + 2 * number),
                          label=f"conversations, answer {number + 1}") if again else []
        rows += (_answered(row, judge) for row in made)
    return rows


def draw(context: Context, replies: Replies, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers at temperature 1 to the turns of ``rows``. Those without a word have a ``reason``; no other filter sees them: recovery learns
    the original's distribution, and what a filter takes out would change it."""
    settings, seed = context.recipe.recover, context.recipe.seed
    drawn: list[dict[str, Any]] = []
    for number in range(settings.answers):
        label = "samples" + (f", answer {number + 1}" if number else "")
        drawn += (_answered(row, None) for row in replies.to(
            [_asked(row, f"s{number}") for row in rows], _sampling(settings, 1.0, seed + 1 + 2 * number), label=label))
    return drawn


def _next_turns(context: Context, replies: Replies, talks: Sequence[Talk], keep: PromptFilter) -> list[Talk]:
    """Let the model write each user's next turn; gives the conversations in which the filter takes it."""
    asked = [talk.row("user") | {"answer": talk.said[-1]["content"], "prompt": talk.said[-2]["content"], "history": talk.said[:-2]}
             for talk in talks]
    said = replies.to(asked, user_sampling(context, 0), label=f"users' turn {talks[0].turn + 2}", speaker="user")
    going_on = []
    for talk, row in zip(talks, said, strict=True):
        if row["finish"] != "stop":
            keep.counts.drop(TOO_LONG if row["finish"] == "too long" else "cut")
        elif (prompt := keep(row["text"])) is not None:
            talk.said.append({"role": "user", "content": prompt})
            going_on.append(talk)
    return going_on


def _asked(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A row before its answer, to be answered once more under another name."""
    return {**{key: row[key] for key in ("system", "history", "prompt", "origin", "held_out", "delicate")},
            "id": f"{row['id'].rpartition('-')[0]}-{name}"}


def _answered(row: dict[str, Any], judge: AnswerFilter | None) -> dict[str, Any]:
    """The row as it is written. What is held out is measured, whatever it is like."""
    answer, reason = row["text"], None
    if row["finish"] == "too long":
        reason = TOO_LONG
    elif not row["held_out"]:
        reason = judge(answer, cut=row["finish"] != "stop") if judge is not None else None if answer else "empty"
    return {key: value for key, value in row.items() if key != "text"} | {"answer": answer, "refusal": is_refusal(answer), "reason": reason}


def _conversation(row: dict[str, Any], speaker: Literal["assistant", "user"]) -> Conversation:
    roles: tuple[Role, Role] = "user", "assistant"
    said = [Turn("system", row["system"])] if row["system"] else []
    said += [Turn(roles[number % 2], message["content"]) for number, message in enumerate(row["history"])]
    said.append(Turn("user", row["prompt"]))
    if speaker == "user":
        said.append(Turn("assistant", row["answer"]))
    return Conversation(tuple(said), speaker)


def _judge(settings: Recover) -> AnswerFilter:
    near = NearDuplicates(settings.near_duplicates) if settings.near_duplicates is not None else None
    return AnswerFilter(drop_cut=settings.cut_answers == "drop", max_repeats=settings.max_repeats, check_language=settings.check_language,
                        near=near)


def _sampling(settings: Recover, temperature: float, seed: int) -> ReplySampling:
    return ReplySampling(settings.max_new_tokens, temperature=temperature, seed=seed)


def _place(key: str, what: str) -> float:
    """A number in [0, 1) that belongs to a conversation."""
    return int.from_bytes(blake2b(f"{key} {what}".encode(), digest_size=7).digest(), "big") / 2**56
