"""What launchers' configurations ask for, and what of it is done."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from transllm import processes
from transllm.errors import RunError
from transllm.model import Sharing, sharing_asked
from transllm.model.shard import launcher_notice
from transllm.recipe.schema import Training

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
STAYS, AGAIN = Sharing(again=False), Sharing(again=True)


def _zero(**names: str) -> dict[str, str]:
    return {"ACCELERATE_USE_DEEPSPEED": "true", **{f"ACCELERATE_DEEPSPEED_{name}": value for name, value in names.items()}}


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: 2)


@pytest.mark.parametrize(("environment", "adapter", "full"), [
    ({}, None, None),
    ({"ACCELERATE_USE_FSDP": "false"}, None, None),
    (FSDP, AGAIN, AGAIN),
    ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, STAYS, STAYS),
    (_zero(), None, STAYS),  # accelerate's own default is stage 2
    (_zero(ZERO_STAGE="0"), None, None),
    (_zero(ZERO_STAGE="1"), None, STAYS),
    (_zero(ZERO_STAGE="3", OFFLOAD_OPTIMIZER_DEVICE="none", OFFLOAD_PARAM_DEVICE="none", CONFIG_FILE="none"), AGAIN, AGAIN),
])
def test_what_is_asked(environment: dict[str, str], adapter: Sharing | None, full: Sharing | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (sharing_asked(Training()), sharing_asked(Training(train="full"))) == (adapter, full)
    monkeypatch.setattr(processes, "world", lambda: 1)
    assert sharing_asked(Training()) is sharing_asked(Training(train="full")) is None


@pytest.mark.parametrize("inside", [False, True], ids=["a path", "base64"])
def test_a_file_of_deepspeeds_own(tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in place of accelerate's variables, as accelerate does."""
    def given(content: object) -> None:
        text = json.dumps(content)
        file = tmp_path / "zero.json"
        file.write_text(text)
        where = base64.urlsafe_b64encode(text.encode()).decode() if inside else str(file)
        for name, value in _zero(ZERO_STAGE="1", CONFIG_FILE=where).items():
            monkeypatch.setenv(name, value)

    given({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}, "comment": "longer than a name of a file may be" * 20})
    assert sharing_asked(Training()) == AGAIN
    assert "ZeRO stage 3" in (launcher_notice(Training()) or "")
    given({"train_batch_size": "auto"})
    assert sharing_asked(Training(train="full")) is None  # DeepSpeed without ZeRO
    given({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}})
    with pytest.raises(RunError, match="offload"):
        sharing_asked(Training())
    given({"zero_optimization": {"stage": 4}})
    with pytest.raises(RunError, match="stage 4"):
        sharing_asked(Training())
    given(["zero_optimization"])
    with pytest.raises(RunError, match="cannot be read"):
        sharing_asked(Training())


@pytest.mark.parametrize(("environment", "message"), [
    ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1"),
    ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    (_zero(ZERO_STAGE="2", OFFLOAD_OPTIMIZER_DEVICE="cpu"), "offload"),
    (_zero(ZERO_STAGE="three"), "'three'"),
    (_zero(CONFIG_FILE="nowhere/zero.json"), "nowhere/zero.json"),
])
def test_what_is_not_done(environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=message):
        sharing_asked(Training())


def test_what_is_in_4_bits_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(quantize="nf4")
    for name, value in _zero(ZERO_STAGE="2").items():
        monkeypatch.setenv(name, value)
    assert sharing_asked(training) is None  # nothing is shared out then
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(RunError, match="4 bits"):
        sharing_asked(training)
    assert "DeepSpeed" in (launcher_notice(Training()) or "")
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    assert launcher_notice(Training()) is None


def test_the_notice_says_who_holds_what(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _zero(ZERO_STAGE="2").items():
        monkeypatch.setenv(name, value)
    assert "FSDP2 does what that stage does" in (launcher_notice(Training(train="full")) or "")
    assert "Each process holds the whole model" in (launcher_notice(Training()) or "")
