"""The verbs that look at a finished run, through the command line; and the same as functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import transllm


def test_status_of_a_finished_run(finished: Any, cli: Any) -> None:
    done = cli("status", finished.folder)
    assert done.code == 0 and done.err == ""
    assert done.out.count(" done ") == 9 and f"transllm chat {finished.folder}" in done.out
    tokens = json.loads((finished.folder / "bitext" / "manifest.json").read_text())["tokens"]
    assert f"{tokens:,}" in done.out


def test_status_of_half_a_run(finished: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path, without=("finetune", "merge", "evaluate"))
    (run / "finetune").mkdir()
    done = cli("status", run)
    assert done.code == 0 and done.out.count("waiting") == 2 and done.out.count("unfinished") == 1
    assert f"transllm run {run / 'recipe.yaml'} --runs {tmp_path}" in done.out


def test_inspect_tokens(finished: Any, cli: Any, tmp_path: Path) -> None:
    page = tmp_path / "tokens.html"
    done = cli("inspect", "tokens", finished.folder, "La biblioteca por la mañana.", "--html", page)
    assert done.code == 0, done.err
    before, after = (next(line for line in done.out.splitlines() if line.split()[:1] == [word]) for word in ("before", "after"))
    assert int(before.split()[1]) > int(after.split()[1]) and "+" in after and "+" not in before
    assert "mañana" in page.read_text(encoding="utf-8").replace("</span>", "").replace("\n", "") or page.stat().st_size > 1000
    sampled = cli("inspect", "tokens", finished.folder)
    assert sampled.code == 0 and "Fertility on" in sampled.out
    piped = cli("inspect", "tokens", finished.folder, text="Nadie explicó el museo.\n")
    assert piped.code == 0 and "Fertility on 1 texts" in piped.out


def test_inspect_batch(finished: Any, cli: Any) -> None:
    for stage in ("pretrain", "bitext", "finetune"):
        done = cli("inspect", "batch", finished.folder, stage, "--rows", "2")
        assert done.code == 0 and done.out.count("learned (") == 2 and "⟦" in done.out and "⟧" in done.out
    assert "⟦<EN>" in done.out or "⟦<RESPONSE>" in done.out or "⟦<ES>" in done.out
    refused = cli("inspect", "batch", finished.folder, "merge")
    assert refused.code == 1 and "trains nothing" in refused.err and "Traceback" not in refused.err


def test_report_is_written_anew(finished: Any, cli: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path)
    (run / "report.html").unlink()
    done = cli("report", run)
    assert done.code == 0 and str(run / "report.html") in done.out and (run / "report.html").stat().st_size > 10_000


def test_chat_answers_lines_of_a_pipe(finished: Any, cli: Any) -> None:
    lines = ("¿Quién pintó el museo?", "/chain", "El capitán explicó la biblioteca.", "/reset", "/nothing", "/exit", "Nadie.")
    done = cli("chat", finished.folder, text="".join(f"{line}\n" for line in lines))
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert "The English steps are shown." in done.err and "The conversation is forgotten." in done.err
    assert "There is no command '/nothing'" in done.err
    assert done.out.count("query in English: ") == 2, "the last answer's steps, and the next one's"
    again = cli("chat", finished.folder, text="¿Quién pintó el museo?\n")
    assert again.out == done.out[: len(again.out)], "greedy answers are the same every time"
    assert cli("chat", finished.folder / "merge", text="¿Quién pintó el museo?\n").out == again.out


def test_chat_as_a_function(finished: Any) -> None:
    chat = transllm.load_chat(finished.folder, max_new_tokens=24)
    streamed: list[str] = []
    reply = chat.send("¿Quién pintó el museo?", stream=streamed.append)
    assert reply.query == "¿Quién pintó el museo?" and 0 < reply.tokens <= 24 + 3 and reply.seconds > 0
    chat.send("El capitán explicó la biblioteca.")
    assert len(chat.history) == 2
    for _ in range(30):  # more than the context of 256 tokens holds: the oldest turns go
        chat.send("Mi vecino recuerda las ventanas del museo antes de la cena.")


def test_chat_in_which_the_original_answers(finished: Any, home: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the original says inside is what it says by itself, token for token, also after it was switched on and off."""
    # In bfloat16, which is quicker on some processors, the two nearest tokens of a tiny model are often nearer than its rounding.
    monkeypatch.setattr("transllm.chat.compute_dtype", lambda *_: torch.float32)
    chat = transllm.load_chat(finished.folder, max_new_tokens=24, mode="switched", repetition_penalty=1)
    tokenizer, alone = AutoTokenizer.from_pretrained(home.model), AutoModelForCausalLM.from_pretrained(home.model).eval()
    messages: list[dict[str, str]] = []
    for query in ("¿Quién pintó el museo?", "Who says that the captain painted the library last winter?", "Nadie explicó el museo."):
        reply = chat.send(query)
        messages.append({"role": "user", "content": reply.query_en})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        said = alone.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=24, do_sample=False)[0, ids.shape[1]:]
        assert tokenizer.decode(said, skip_special_tokens=True).strip() == reply.answer_en
        messages.append({"role": "assistant", "content": reply.answer_en})
    refused = cli("chat", finished.folder / "merge", "--mode", "switched", text="Hola.\n")
    assert refused.code == 1 and "Give the folder of the whole run" in refused.err and "Traceback" not in refused.err
    done = cli("chat", finished.folder, "--mode", "switched", text="¿Quién pintó el museo?\n/chain\n")
    assert done.code == 0 and "answer in English: " in done.out, done.err


def test_there_is_no_original_where_its_rows_were_trained(finished: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path)
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert recipe.count("embeddings: new") == 1
    (run / "recipe.yaml").write_text(recipe.replace("embeddings: new", "embeddings: all"), encoding="utf-8")
    with pytest.raises(transllm.RunError, match="not inside any more"):
        transllm.load_chat(run, mode="switched")


def test_there_is_no_chat_before_the_merge(finished: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("chat", finished.copy(tmp_path, without=("merge", "evaluate")), text="Hola.\n")
    assert done.code == 1 and "'merge' stage is done" in done.err and "Traceback" not in done.err


def test_the_installed_command_and_the_module(home: Any) -> None:
    """Once without the forks of the other tests."""
    for command in ([sys.executable, "-m", "transllm.cli"], [str(Path(sys.executable).with_name("transllm"))]):
        done = subprocess.run([*command, "check", str(home.recipe)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "is in order" in done.stdout, done.stderr
