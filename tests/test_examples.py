"""What examples/ tells others' launchers to do is what they understand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(("name", "distributed"), [("ddp.yaml", "MULTI_GPU"), ("fsdp2.yaml", "FSDP"), ("zero3.yaml", "DEEPSPEED")])
def test_accelerate_reads_them(name: str, distributed: str) -> None:
    config = load_config_from_file(str(EXAMPLES / name))
    assert config.distributed_type == distributed


def test_slurm_and_kubernetes_wait_longer_than_torchrun() -> None:
    """Else the processes are killed by them, or by torchrun after 30 seconds, in the middle of a checkpoint."""
    script = EXAMPLES / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert 30 < int(re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", text)[0]) < int(re.findall(r"--signal=TERM@(\d+)", text)[0])
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert 30 < int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}" in container["args"]
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in container["args"]
