"""``transllm extend``: a model and texts in, a folder with the proof out; and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from transllm.cli import app
from transllm.tokenizer import SpanTokenizer

THAI = ["ห้องสมุดของเมืองเปิดอยู่ทุกวัน", "ไม่มีใครอ่านหนังสือในตอนเช้า", "เมืองนี้มีห้องสมุดและพิพิธภัณฑ์"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(run: Path, spans: SpanTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original model of the tiny run: its rows are those of the original tokenizer, and some that no id addresses."""
    folder = tmp_path_factory.mktemp("model")
    whole = AutoModelForCausalLM.from_pretrained(run / "merge")
    whole.save_pretrained(folder)
    spans.original.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "thai.txt"
    path.write_text("".join(f"{THAI[number % 3]} {THAI[number % 2]} {number} {'ก' * (number % 7)}\n" for number in range(300)), "utf-8")
    return path


def test_extend_writes_a_model_and_its_proof(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "thai"
    result = call("extend", model, "th", texts, "--size", 60, "--out", out)
    assert result.exit_code == 0, result.output
    assert "all 256 bytes" in result.output and "times" in result.output and f"Wrote {out}" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thai"]
    metrics = json.loads((out / "manifest.json").read_text())["metrics"]
    assert metrics["new_pieces"] == 60 and metrics["pre_tokens"]["changed"]
    assert metrics["proof"]["round_trips"]["single_bytes"] == 256 and metrics["proof"]["gguf_pieces"] == 60
    for kind in ("english_identical", "code_identical"):
        assert metrics[kind]["identical"] == metrics[kind]["sentences"] > 50
    assert metrics["english_identical"]["sentences"] > 1000, "all English there is, not the held-out part alone"
    page = (out / "report.html").read_text("utf-8")
    assert "times fewer tokens. The new rows are initialised and not trained yet." in page and "Before and after" not in page
    assert (out / "differences.jsonl").read_text() == ""
    assert metrics["fertility"]["target"]["after"]["tokens"] < 0.3 * metrics["fertility"]["target"]["before"]["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size >= len(tokenizer)
    shown = call("inspect", "tokens", out, THAI[0], "--speed", "--html", tmp_path / "page.html")
    assert shown.exit_code == 0 and "Held-out text" in shown.output and "Throughput, characters a second" in shown.output, shown.output
    assert "<h2>Fertility</h2>" in (tmp_path / "page.html").read_text("utf-8")
    again = call("extend", model, "th", texts, "--out", out)
    assert again.exit_code == 1 and "exists already" in again.output


def test_text_of_another_script_and_too_little_of_it_are_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "english.txt").write_text("".join(f"Nobody reads the book number {number} in the morning.\n" for number in range(300)))
    result = call("extend", model, "th", tmp_path / "english.txt", "--size", 60, "--out", tmp_path / "thai")
    assert result.exit_code == 0, result.output
    assert "Only 0% of the Thai text's letters" in result.output and "holds only 0 sub-words" in result.output
    warnings = json.loads((tmp_path / "thai" / "manifest.json").read_text())["metrics"]["warnings"]
    assert len(warnings) == 2


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("es",), "Give English text"), (("tt",), "no language 'tt'"), (("th", "--size", "many"), "no number of sub-words"),
])
def test_what_is_missing_is_said(model: Path, texts: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    code, *options = arguments
    result = call("extend", model, code, texts, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2 and complaint in result.output, result.output
    assert not (tmp_path / "out").exists()
