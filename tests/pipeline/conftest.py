"""A tiny chat model, text made here, a recipe with tiny budgets, and a command line that starts in milliseconds."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STAGES = ("prepare", "extend", "pretrain", "bitext", "recover", "bridge", "finetune", "merge", "evaluate")
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
WHO = (("The teacher", "La maestra"), ("My neighbour", "Mi vecino"), ("The old farmer", "El viejo campesino"), ("Nobody", "Nadie"),
       ("The captain", "El capitán"), ("Every student", "Cada estudiante"), ("The doctor", "El médico"), ("Her brother", "Su hermano"))
DOES = (("wanted to visit", "quería visitar"), ("describes", "describe"), ("explained", "explicó"), ("remembers", "recuerda"),
        ("painted", "pintó"), ("translated", "tradujo"), ("has never seen", "nunca ha visto"))
WHAT = (("the library", "la biblioteca"), ("a wooden bridge", "un puente de madera"), ("the museum", "el museo"),
        ("a simple solution", "una solución sencilla"), ("the windows", "las ventanas"), ("many problems", "muchos problemas"))
WHEN = (("in the morning", "por la mañana"), ("last winter", "el invierno pasado"), ("because it rained", "porque llovía"),
        ("before dinner", "antes de la cena"), ("without any help", "sin ninguna ayuda"))
ASKED = ("What do you know about {what} {when}?", "Why is it that {who} {does} {what}?", "Tell me a story in which {who} {does} {what}.",
         "Who says that {who} {does} {what} {when}?", "Write a letter about {what} {when}.")
SAID = ("Yes, {when}.", "Nobody knows.", "It was {what}.", "Because {who} slept.")


def _pairs(count: int) -> list[tuple[str, str]]:
    every = [(f"{who[0]} {does[0]} {what[0]} {when[0]}.", f"{who[1]} {does[1]} {what[1]} {when[1]}.")
             for who in WHO for does in DOES for what in WHAT for when in WHEN]
    return random.Random(1).sample(every, count)


def _english(draw: random.Random, form: str) -> str:
    parts = {"who": draw.choice(WHO)[0].lower(), "does": draw.choice(DOES)[0], "what": draw.choice(WHAT)[0], "when": draw.choice(WHEN)[0]}
    return form.format(**parts)


def _conversations(count: int) -> list[tuple[str, str]]:
    draw = random.Random(2)
    return [(_english(draw, draw.choice(ASKED)), _english(draw, draw.choice(SAID))) for _ in range(count)]


def _tiny_model(folder: Path) -> None:
    """A Llama of 130,000 weights, trained for a second or two, so that it ends its turns and writes user turns itself."""
    talk = _conversations(200)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator([text for turn in talk for text in turn] + [english for english, _ in _pairs(300)], trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                        pad_token="<|im_end|>", model_max_length=256, chat_template=TEMPLATE)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2))
    rows = [tokenizer.apply_chat_template([{"role": "user", "content": asked}, {"role": "assistant", "content": said}], return_dict=True)
            ["input_ids"] for asked, said in talk]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [2] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        choice = torch.randint(len(rows), (16,), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids[choice], labels=labels[choice]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Home:
    """Where the tests live: model, text and recipe. The tests do not change it; ``at`` makes a copy that they may change."""

    folder: Path
    recipe: Path
    settings: dict[str, Any] = field(repr=False)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def at(self, folder: Path) -> Home:
        """A copy with its times, so that digests stay the same."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Home(folder, folder / self.recipe.name, copy.deepcopy(self.settings))

    def write(self, **changes: Any) -> Path:
        """Write the recipe again with changes (``finetune={"tokens": 5}``, None takes a key out) and give its path."""
        for section, value in changes.items():
            if isinstance(value, dict) and isinstance(self.settings.get(section), dict):
                self.settings[section] = {key: setting for key, setting in {**self.settings[section], **value}.items()
                                          if setting is not None}
            else:
                self.settings[section] = value
        self.recipe.write_text(yaml.safe_dump(self.settings, allow_unicode=True), encoding="utf-8")
        return self.recipe


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    _tiny_model(folder / "model")
    (folder / "pairs.tsv").write_text("".join(f"{english}\t{spanish}\n" for english, spanish in _pairs(300)), encoding="utf-8")
    (folder / "prompts.txt").write_text("".join(f"{asked}\n" for asked in dict.fromkeys(asked for asked, _ in _conversations(9))),
                                        encoding="utf-8")
    (folder / "queries.txt").write_text("¿Qué hay en la biblioteca?\n¿Quién pintó el puente?\n¿Por qué llovía?\n¿Dónde está el museo?\n",
                                        encoding="utf-8")
    training = {"tokens": 2000, "batch_tokens": 128, "micro_tokens": 128, "sequence_length": 64, "learning_rate": 5e-3}
    settings: dict[str, Any] = {
        "name": "tiny", "model": "./model", "language": "es", "seed": 3,
        "data": {"parallel": [{"files": "pairs.tsv", "columns": [0, 1], "licence": "CC0-1.0"}], "held_out": 0.1, "development": 0.05},
        # The toy English says nothing of program text, which a tokenizer of 500 tokens cuts otherwise.
        "extend": {"vocab_size": 40, "min_count": 3, "min_identical": 0.0},
        "training": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}, "precision": "float32", "checkpoint_minutes": 0.0001, "log_every": 1,
                     "trackers": []},
        "pretrain": dict(training), "bitext": {**training, "tokens": 6000, "replay": 0.1}, "finetune": {**training, "sequence_length": 128},
        "recover": {"prompts": [{"files": "prompts.txt"}, "self"], "count": 15, "max_new_tokens": 16, "batch_size": 2},
        "bridge": {"check_language": False, "min_length_ratio": 0.001, "max_length_ratio": 10000, "max_repeats": 100000, "batch_size": 3},
        "evaluate": {"queries": {"files": "queries.txt"}, "sentences": 4, "query_count": 4, "documents": 4, "answers": 3,
                     "max_new_tokens": 12, "batch_size": 8}}
    home = Home(folder, folder / "tiny.yaml", settings)
    home.write()
    return home


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Command:
    """A command at work in a process of its own."""

    def __init__(self, cli: Cli, pid: int, folder: Path) -> None:
        self._cli, self.pid, self._folder = cli, pid, folder

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Done:
        code = self._cli.ask({"wait": self.pid})
        return Done(code, *self._said())

    def _said(self) -> list[str]:
        return [(self._folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]

    def ended(self) -> bool:
        """Whether it has ended (and is still to be waited for)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def until(self, condition: Callable[[], bool], *, seconds: float = 60) -> bool:
        """Wait for a condition while it works; False if it ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.ended():
                print("It ended before. It said:", *self._said(), sep="\n")  # pytest shows this where that is a failure
                return False
            assert time.monotonic() < deadline, "the condition never came"
            time.sleep(0.001)
        return True


class Cli:
    """Starts ``transllm`` in processes that are forked off one which has imported it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._number = process, folder, 0

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, *args: str | Path, text: str = "", file_limit: int | None = None, **environment: str) -> Command:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        (folder / "stdin").write_text(text, encoding="utf-8")
        pid = self.ask({"args": [str(arg) for arg in args], "folder": str(folder), "input": "stdin", "file_limit": file_limit,
                        "environment": environment})
        return Command(self, pid, folder)

    def __call__(self, *args: str | Path, text: str = "", file_limit: int | None = None) -> Done:
        return self.start(*args, text=text, file_limit=file_limit).wait()


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    source = str(Path(__file__).parents[2] / "src")
    # One thread: a process that has several must not be forked, and results shall not depend on the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": source,
                   "MPLBACKEND": "agg", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, str(Path(__file__).with_name("zygote.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env=environment) as process:
        yield Cli(process, tmp_path_factory.mktemp("commands"))
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Finished:
    """A run that went through undisturbed. Not to be changed; ``copy`` gives one that may be."""

    folder: Path
    done: Done
    seconds: float

    def copy(self, runs: Path, *, without: tuple[str, ...] = ()) -> Path:
        """A run folder in ``runs``, without some stages."""
        folder = runs / self.folder.name
        shutil.copytree(self.folder, folder, ignore=lambda path, _: [*without, "metrics.json"] if Path(path) == self.folder and without
                        else [])
        return folder


@pytest.fixture(scope="session")
def finished(home: Home, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    runs = tmp_path_factory.mktemp("runs")
    started = time.monotonic()
    done = cli("run", home.recipe, "--runs", runs)
    assert done.code == 0, done.err
    return Finished(runs / "tiny", done, time.monotonic() - started)
