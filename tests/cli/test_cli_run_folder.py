"""Verbs that look at a run: chat, inspect tokens, status, report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from transllm.cli import app
from transllm.cli import chat as chat_verb
from transllm.tokenizer import SpanTokenizer


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


# inspect tokens

def test_inspect_tokens_shows_both_cuts_and_the_gain(run: Path, spans: SpanTokenizer, tmp_path: Path) -> None:
    text = "La biblioteca [red] de la ciudad <EN>"
    result = call("inspect", "tokens", run, text, "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    before, after = result.stdout.splitlines()[:2]
    assert before.split()[0] == "before" and after.split()[0] == "after" and int(after.split()[1]) < int(before.split()[1])
    assert "+" in after and "+" not in before, "new sub-words are marked"
    for line in (before, after):
        assert line.split(maxsplit=2)[2].replace("|", "").replace("+", "") == text
    assert "per byte" in result.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "class=new" in page and "&lt;" in page and "<EN>" not in page and "http" not in page


def test_inspect_tokens_takes_a_recipe_a_stage_folder_a_pipe_and_the_runs_own_text(run: Path) -> None:
    home = run.parents[1]
    for where in (run, run / "extend", run / "merge"):
        result = call("inspect", "tokens", where, stdin="una biblioteca\n\notra\n")
        assert result.exit_code == 0 and "2 texts" in result.stdout, result.output
        assert "una biblioteca" in result.stdout.replace("|", "").replace("+", "")
    own = call("inspect", "tokens", home / "tiny.yaml", "--runs", run.parent)
    assert own.exit_code == 0, own.output
    plain = own.stdout.replace("|", "").replace("+", "")
    assert "biblioteca" in plain and "library" in plain


# chat

def test_chat_answers_the_lines_of_a_pipe(run: Path) -> None:
    done = call("chat", run, stdin="hola\n\n/nope\n/reset\n/help\n/exit\nnever\n")
    assert done.exit_code == 0, done.output
    assert "There is no command '/nope'" in done.stderr and "forgotten" in done.stderr and "/chain" in done.stdout
    assert "> " not in done.stdout and "Loading" not in done.stderr, "no prompts where nobody types"


def test_chat_needs_a_merged_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "missing"):
        result = call("chat", folder)
        assert result.exit_code == 1 and result.stderr.startswith("error: ")


class Typed:
    """Someone at the keyboard: a standard input that is a terminal, and what ``input`` gives."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)

    def __call__(self, prompt: str) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


def test_ctrl_c_at_the_prompt_clears_the_line_and_ctrl_d_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", Typed("one", KeyboardInterrupt, "two", EOFError, "never"))
    assert list(chat_verb._lines(True)) == ["one", "two"]


def test_ctrl_c_in_an_answer_stops_the_answer_only(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transllm.chat import load_chat

    chat = load_chat(run, max_new_tokens=8)
    session = chat_verb._Session(chat, talkative=False)

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat._engine, "generate", interrupted)
        assert session.take("hola") is True
    assert "Stopped" in capsys.readouterr().err and chat.history == []
    assert session.take("hola") is True and len(chat.history) == 1
    capsys.readouterr()
    assert session.take("/chain") is True and "answer in English: " in capsys.readouterr().out
    assert session.take("/reset") is True and chat.history == []
    assert session.take("/exit") is False


# status, report

def test_status_shows_every_stage_and_how_to_go_on(run: Path) -> None:
    result = call("status", run)
    assert result.exit_code == 0, result.output
    for words in ("extend", "finetune", "waiting", f"transllm run {run / 'recipe.yaml'} --runs {run.parent}"):
        assert words in result.output, words


def test_report_is_written_for_an_unfinished_run(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny"
    copy.mkdir()
    shutil.copy(run / "recipe.yaml", copy / "recipe.yaml")
    result = call("report", copy)
    assert result.exit_code == 0 and (copy / "report.html").stat().st_size > 1000, result.output


def test_stages_are_named_right_or_refused(run: Path) -> None:
    for arguments in (["inspect", "batch", run, "merge"], ["inspect", "batch", run, "pretrain"]):
        result = call(*arguments)
        assert result.exit_code == 1 and result.stderr.startswith("error: The stage"), result.output
    wrong = call("run", run / "recipe.yaml", "--runs", run.parent, "--until", "everything")
    assert wrong.exit_code == 1 and "There is no stage 'everything'" in wrong.stderr
