"""What a person meets at the command line: messages, exit codes, no tracebacks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from transllm.cli import app, run
from transllm.errors import ModelError

ROOT = Path(__file__).parents[2]
GOOD = "model: org/some-chat\nlanguage: th\ndata:\n  parallel: [{files: pairs.tsv, columns: [0, 1]}]\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "pairs.tsv").write_text("Hello there\tสวัสดี\n", encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def program(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "transllm.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          input=stdin, env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, check=False)


def test_help_names_all_verbs_and_is_quick() -> None:
    start = time.monotonic()
    done = program("--help")
    assert done.returncode == 0 and time.monotonic() - start < 20
    for verb in ("init", "plan", "check", "run", "status", "chat", "inspect", "report"):
        assert f" {verb} " in done.stdout


def test_help_and_check_do_not_load_torch(recipe: Path) -> None:
    code = (f"import sys; sys.argv[1:] = ['check', {str(recipe)!r}]\n"
            "from transllm.cli import main\n"
            "try: main()\n"
            "except SystemExit as end: code = end.code\n"
            "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules], code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


def test_version() -> None:
    assert call("--version").output.startswith("transllm")


def test_no_verb_shows_help_and_fails() -> None:
    result = call()
    assert result.exit_code == 2 and "Usage" in result.output


@pytest.mark.parametrize("arguments", [["rnu", "x"], ["run"], ["run", "r.yaml", "--frm", "x"], ["init", "m"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output


@pytest.mark.parametrize("verb", ["check", "plan", "run"])
def test_recipe_errors_go_to_stderr_without_a_traceback(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD + "finetune: {tokns: 1}\nlora: {}\n")
    done = program(verb, path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {path} has 2 problems:\n")
    assert "Did you mean 'tokens'?" in done.stderr and "It belongs in section 'training'." in done.stderr


def test_problems_beyond_types_stop_a_run_before_it_starts(recipe: Path) -> None:
    (recipe.parent / "pairs.tsv").unlink()
    for verb in ("check", "plan", "run"):
        result = call(verb, recipe)
        assert result.exit_code == 2 and "there is no file" in result.output
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("content,expected", [
    (b"", "is empty"), (b"model: \xff\n", "not UTF-8"), (None, "There is no recipe"), (b"a: b: c", "not YAML")])
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "r.yaml").write_bytes(content)
    result = call("check", tmp_path / "r.yaml")
    assert result.exit_code in (1, 2) and expected in result.output and result.exception is not None and "Traceback" not in result.output


def test_markup_in_a_message_is_printed_as_it_is(tmp_path: Path) -> None:
    result = call("check", tmp_path / "[red]x[/red].yaml")
    assert "[red]x[/red].yaml" in result.output.replace("\n", "")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = program("--debug", "check", tmp_path / "none.yaml")
    assert done.returncode == 1 and "Traceback" in done.stderr and "DataError" in done.stderr and "This is a bug" not in done.stderr


@pytest.mark.parametrize("error,code,expected", [
    (KeyboardInterrupt(), 130, "Stopped. Run the same command again to go on."),
    (OSError(28, "No space left on device", "/runs/x/model.safetensors"), 1, "The disk is full (/runs/x/model.safetensors)."),
    (OSError(28, "No space left on device"), 1, "The disk is full."),
    (PermissionError(13, "Permission denied", "/runs"), 1, "'/runs' may not be read or written"),
    (FileNotFoundError(2, "No such file or directory", "/x"), 1, "'/x': No such file or directory."),
    (ModelError("There is no model. Name one."), 1, "error: There is no model. Name one."),
])
def test_what_a_failing_verb_says(recipe: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, expected: str) -> None:
    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(run, "refuse_problems", broken)
    result = call("run", recipe)
    assert result.exit_code == code and expected in result.output.replace("\n", " ") and "Traceback" not in result.output


def _with_a_broken_check(recipe: Path, statement: str) -> subprocess.CompletedProcess[str]:
    code = (f"import os, sys; sys.argv[1:] = ['run', {str(recipe)!r}]\n"
            "from transllm.cli import main, run\n"
            f"def broken(*arguments): {statement}\n"
            "run.refuse_problems = broken\n"
            "main()")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", timeout=120, check=False)


def test_a_bug_shows_its_traceback_and_asks_for_a_report(recipe: Path) -> None:
    done = _with_a_broken_check(recipe, "raise ZeroDivisionError('oh')")
    assert done.returncode == 1 and "ZeroDivisionError: oh" in done.stderr and "This is a bug in transllm. Please report it" in done.stderr


def test_a_crash_of_compiled_code_says_where(recipe: Path) -> None:
    done = _with_a_broken_check(recipe, "os.abort()")
    assert done.returncode == -signal.SIGABRT and "Fatal Python error: Aborted" in done.stderr and "in broken" in done.stderr


def test_errors_of_run_folders_are_messages_too(recipe: Path) -> None:
    done = program("status", recipe.parent / "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("error: There is no run folder")


@pytest.mark.parametrize("arguments", [["status"], ["report"], ["inspect", "batch"]])
def test_a_folder_that_is_no_run(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "runs" / "real").mkdir(parents=True)
    (tmp_path / "runs" / "real" / "recipe.yaml").write_text(GOOD)
    tail = ["finetune"] if arguments[-1] == "batch" else []
    missing = call(*arguments, tmp_path / "runs" / "raal", *tail)
    assert missing.exit_code == 1 and "There are: real." in missing.output
    other = call(*arguments, tmp_path, *tail)
    assert other.exit_code == 1 and "is not a run folder" in other.output.replace("\n", " ")
