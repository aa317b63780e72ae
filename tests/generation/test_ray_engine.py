"""Two workers of a local Ray cluster against one engine in this process: the same replies, each once, also when a worker is killed."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transllm.errors import ModelError
from transllm.generation import Conversation, ConversationEngine, Reply, ReplySampling, Turn
from transllm.generation.ray_engine import RayEngine

pytest.importorskip("ray", reason="Ray is not installed (pip install 'transllm[ray]'): spreading over workers is not tested")

ASKED = [Conversation((Turn("user", f"Who are you, number {number}? " + "The teacher never saw the city. " * (number % 5)),))
         for number in range(20)] + [Conversation(speaker="user")] * 6
SAMPLED = ReplySampling(12, temperature=1.0, seed=3)


def _opener(folder: Path, notes: Path, *, behaviour: str = "") -> Callable[[], ConversationEngine]:
    """Opens the folder's model; each worker notes who it is and what it is asked. Nested, so that it travels without this module."""
    def opener() -> ConversationEngine:
        import os
        import signal
        import time

        import torch

        from transllm.errors import ModelError
        from transllm.generation import TransformersEngine
        from transllm.model import LoadedModel, load_folder

        if behaviour == "no model":
            raise ModelError("There is no such model. Mend the path.")
        if behaviour == "dies at once":
            os.kill(os.getpid(), signal.SIGKILL)

        class Watched(TransformersEngine):
            def generate(self, conversations: Any, *, sampling: ReplySampling) -> Iterator[Reply]:
                with (notes / f"asked.{os.getpid()}").open("a") as file:
                    file.write(f"{len(conversations)} {torch.get_num_threads()}\n")
                for reply in super().generate(conversations, sampling=sampling):
                    if behaviour == "bug":
                        raise ZeroDivisionError("seven by nought")
                    if behaviour == "dies at work" and conversations[reply.index].turns:
                        os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(0.1 if behaviour == "slow" else 0)
                    yield reply

        return Watched(LoadedModel(*load_folder(folder), "tiny"), batch_size=4)

    return opener


def _said(replies: Any) -> dict[int, tuple[Any, ...]]:
    found = list(replies)
    assert sorted(reply.index for reply in found) == list(range(len(ASKED))), "each is answered once"
    return {reply.index: (reply.text, reply.ids, reply.finish, reply.prompt_tokens, reply.tokens) for reply in found}


@pytest.fixture(scope="module")
def folder(make_folders: Callable[[str], Any]) -> Path:
    return Path(make_folders("tied").original)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[ReplySampling, dict[int, tuple[Any, ...]]]:
    """What one engine in this process says."""
    engine = _opener(folder, tmp_path_factory.mktemp("alone"))()
    return {sampling: _said(engine.generate(ASKED, sampling=sampling)) for sampling in (ReplySampling(12), SAMPLED)}


def _open(folder: Path, notes: Path, behaviour: str = "", **settings: Any) -> RayEngine:
    return RayEngine(_opener(folder, notes, behaviour=behaviour), **{"workers": 2, "block": 5, "cpus": 1, "gpus": 0} | settings)


def test_replies_are_those_of_one_process_and_workers_stay(folder: Path, tmp_path: Path, alone: Any) -> None:
    terminate = signal.getsignal(signal.SIGTERM)
    engine = _open(folder, tmp_path)
    try:
        assert signal.getsignal(signal.SIGTERM) is terminate
        for sampling in (ReplySampling(12), SAMPLED):
            assert _said(engine.generate(ASKED, sampling=sampling)) == alone[sampling]
        stream = engine.generate(ASKED, sampling=SAMPLED)
        next(stream)
        stream.close()  # what workers still have in work must not come out as replies to the next call
        assert _said(engine.generate(ASKED, sampling=ReplySampling(12))) == alone[ReplySampling(12)]
        assert len({reply.ids for reply in engine.generate([ASKED[-1]] * 6, sampling=SAMPLED)}) == 6
        assert list(engine.generate([], sampling=SAMPLED)) == []
    finally:
        engine.close()
    notes = [line.split() for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert len(list(tmp_path.iterdir())) == 2, "two workers, opened once"
    assert max(int(size) for size, _ in notes) == 5 and {threads for _, threads in notes} == {"1"}


def test_a_killed_worker_loses_nothing_and_repeats_at_most_its_block(folder: Path, tmp_path: Path, alone: Any,
                                                                     caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    engine = _open(folder, tmp_path, "slow")
    killed: list[int] = []

    def watched() -> Iterator[Reply]:
        for number, reply in enumerate(engine.generate(ASKED, sampling=SAMPLED)):
            if number in (2, 11):
                killed.append(next(pid for path in tmp_path.iterdir() if (pid := int(path.name.split(".")[1])) not in killed))
                os.kill(killed[-1], signal.SIGKILL)
            yield reply

    try:
        with caplog.at_level(logging.WARNING):
            assert _said(watched()) == alone[SAMPLED]
    finally:
        engine.close()
    assert "another takes its place and its" in caplog.text
    assert len(list(tmp_path.iterdir())) >= 3
    asked = sum(int(line.split()[0]) for path in tmp_path.iterdir() for line in path.read_text().splitlines())
    assert len(ASKED) < asked <= len(ASKED) + 2 * 5
    assert "raylet" not in capfd.readouterr().out


@pytest.mark.parametrize(("behaviour", "said"), [
    ("no model", "There is no such model. Mend the path."),
    ("bug", "A worker failed (ZeroDivisionError: seven by nought)."),
    ("dies at once", "The workers of Ray end again and again while they open their engine: 3 in a row."),
    ("dies at work", "The workers of Ray end again and again at the same conversations: 3 in a row.")])
def test_what_goes_wrong_in_a_worker_is_told_in_words(folder: Path, tmp_path: Path, behaviour: str, said: str) -> None:
    engine = _open(folder, tmp_path, behaviour, workers=1)
    try:
        with pytest.raises(ModelError) as error:
            list(engine.generate(ASKED, sampling=ReplySampling(12)))
    finally:
        engine.close()
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert error.value.__cause__ is None or error.value.__suppress_context__


class _Elsewhere:
    """An opener from a package that the workers do not have."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("a_package_of_another_machine",)

    def __call__(self) -> ConversationEngine:
        raise NotImplementedError


def test_a_worker_without_our_packages_is_told_at_once() -> None:
    engine = RayEngine(_Elsewhere(), workers=1, cpus=1, gpus=0)
    try:
        with pytest.raises(ModelError) as error:
            list(engine.generate(ASKED, sampling=ReplySampling(12)))
    finally:
        engine.close()
    assert str(error.value).startswith(
        "A worker of Ray could not begin (ModuleNotFoundError: No module named 'a_package_of_another_machine').")


def test_no_room_and_no_cluster(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No machine of the Ray cluster has room for a worker with 1 processors and 9 GPUs\."):
        _open(folder, tmp_path, gpus=9)
    with pytest.raises(ModelError, match=r"No Ray cluster answers at 'auto' \(ConnectionError"):
        _open(folder, tmp_path, address="auto")
