"""``transllm chat``: talk to the transformed model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from transllm.cli.console import err, out

if TYPE_CHECKING:
    from transllm.chat import Chat, Reply

HELP = """/chain   show the English steps of the last answer, and of all that follow; again: hide them
/reset   forget the conversation
/help    this text
/exit    leave (Ctrl-D too); Ctrl-C stops an answer"""


def chat(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder, or the folder of a merged model.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most, its English steps included.")] = 512,
    repetition_penalty: Annotated[float, typer.Option(min=1, help="For words that a step has said: the higher, the fewer loops. "
                                                                  "1: plain greedy decoding.")] = 1.1,
    mode: Annotated[Literal["merged", "switched", "direct"], typer.Option(
        help="merged: by a chain of English steps. switched: the original chat model answers, what you say and what it says is translated. "
             "direct: at once, for models that learned it.")] = "merged",
    beams: Annotated[int, typer.Option(min=1, max=64, help="Ways of saying the answer to follow side by side: more say it better, and show "
                                                           "it when it is done, not word by word.")] = 1,
) -> None:
    """Talk to the transformed model in its new language. Lines from a pipe are answered one by one."""
    from transllm.chat import load_chat

    asked = sys.stdin.isatty()
    if asked:
        err().print(f"Loading {folder} ...", style="dim", markup=False)
    session = _Session(load_chat(folder, max_new_tokens=max_tokens, repetition_penalty=repetition_penalty, mode=mode, beams=beams),
                       talkative=asked)
    if asked:
        err().print("Write in the model's new language. /help lists the commands.", style="dim")
    for line in _lines(asked):
        if not session.take(line):
            break


def _lines(asked: bool) -> Iterator[str]:
    """The user's lines until the end of input; an interrupt at the prompt only clears the line."""
    if not asked:
        yield from sys.stdin
        return
    import readline  # noqa: F401  # gives input() its line editing and history

    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except EOFError:
            sys.stdout.write("\n")
            return


class _Session:
    """One conversation at the terminal."""

    def __init__(self, chat: Chat, *, talkative: bool) -> None:
        self._chat, self._talkative = chat, talkative
        self._chain = False
        self._last: Reply | None = None

    def take(self, line: str) -> bool:
        """Do what a line says; False to leave."""
        text = line.strip()
        if text in ("/exit", "/quit"):
            return False
        if text == "/help":
            out().print(HELP, markup=False)
        elif text == "/reset":
            self._chat.reset()
            self._last = None
            self._note("The conversation is forgotten.")
        elif text == "/chain":
            self._chain = not self._chain
            self._note(f"The English steps are {'shown' if self._chain else 'hidden'}.")
            if self._chain and self._last is not None:
                self._show_chain(self._last)
        elif text.startswith("/") and " " not in text:
            self._note(f"There is no command '{text}'. /help lists them.")
        elif text:
            self._answer(text)
        return True

    def _answer(self, text: str) -> None:
        def stream(piece: str) -> None:
            sys.stdout.write(piece)
            sys.stdout.flush()

        try:
            reply = self._chat.send(text, stream=stream)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            self._note("Stopped. This turn is not part of the conversation.")
            return
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._last = reply
        if self._chain:
            self._show_chain(reply)
        if reply.problems:
            self._note(f"({reply.kind}: {'; '.join(str(problem) for problem in reply.problems)})")
        if self._talkative:
            self._note(f"{reply.tokens} tokens, {reply.seconds:.1f} s")

    def _show_chain(self, reply: Reply) -> None:
        for label, text in (("query in English", reply.query_en), ("answer in English", reply.answer_en)):
            out().print(Text(f"  {label}: ", style="dim").append(text or "(none)", style="cyan"))

    def _note(self, text: str) -> None:
        err().print(Text(text, style="dim"))
