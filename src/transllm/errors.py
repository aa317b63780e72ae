"""What can go wrong, as a tree.

    TransLLMError               something the user can mend; the command line prints it without a traceback
    ├── RecipeError             one or more problems of a recipe, all reported at once
    ├── DataError               a source, a file or a row is not what it should be
    ├── ModelError              a model or tokenizer cannot be loaded, extended, trained or merged
    ├── RunError                a run folder, stage or lock is in the way
    │   └── LostProcessError    another process of this run has ended
    ├── TrainingError           training went wrong in a way that must not pass silently (NaN, empty mask)
    ├── Ended                   another process failed and has said why
    └── MissingExtraError       an optional dependency is not installed

Every message says what is wrong in one sentence and what to do in another.
"""

from __future__ import annotations

from collections.abc import Sequence


class TransLLMError(Exception):
    """Base of all errors that a user can mend. ``exit_code`` is the command line's."""

    exit_code = 1


class RecipeError(TransLLMError):
    """All problems of one recipe.

    Args:
        problems: one sentence or two each, in the order of the recipe.
        where: the recipe's file, if it has one.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[str], *, where: str | None = None) -> None:
        self.problems = list(problems)
        head = f"{where or 'The recipe'} has {len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class DataError(TransLLMError):
    """A source, a file or a row is not what it should be."""


class ModelError(TransLLMError):
    """A model or tokenizer cannot be loaded, extended, trained or merged."""


class RunError(TransLLMError):
    """A run folder, a stage or a lock is in the way."""


class LostProcessError(RunError):
    """Another process of this run has ended."""


class Ended(TransLLMError):
    """Another process of this run failed and has said why; nothing is left to say here."""

    def __init__(self, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__("Another process of this run ended. Its own message says why.")


class TrainingError(TransLLMError):
    """Training went wrong in a way that must not pass silently."""


class MissingExtraError(TransLLMError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{module}', which is not installed. "
                         f"Install it with: pip install 'transllm[{extra}]'")


def first_line(error: BaseException) -> str:
    """What another library's error says, for a sentence of ours: its first line without a full stop, or its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0].rstrip(".") if said else type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """``first_line`` behind the error's kind, for errors whose words alone may say little."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"
