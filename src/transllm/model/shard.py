"""Weights shared out among processes (FSDP2): each keeps a part of every layer, and lends it while the layer is at work.

An adapter stays whole on every process, with its optimiser state: it is a few hundredths of a model, and one process can write a checkpoint
of it alone. Where all weights train, each process has the gradients and the optimiser state of its part only, and all must help to write a
checkpoint. Embedding and head stay whole in both cases: the loss calls the head outside the model's own pass. So what the layers
take, nearly all of a large model, is divided by the number of processes. A checkpoint is the same file in all cases.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transllm import processes
from transllm.errors import RunError, first_line
from transllm.model.adapter import Adapted
from transllm.recipe.schema import Training


@dataclass(frozen=True)
class Sharing:
    """How processes share layers out.

    Attributes:
        again: a layer's weights are given back after the forward pass and lent once more in the backward one; else they stay in between,
            which is faster and needs memory for all layers at that moment.
    """

    again: bool = True


def sharing_asked(training: Training) -> Sharing | None:
    """How the launcher's configuration (``accelerate launch``, or its environment variables) wants layers shared out, if at all.

    It may ask in FSDP2's words or in DeepSpeed's. ZeRO's stages (arXiv 1910.02054) say what each process holds a part of: 1 the optimiser
    state, 2 also gradients, 3 also weights. FSDP2 divides all three. So stage 3 is that; 1 and 2 are that with weights which stay from the
    forward to the backward pass. With an adapter there is next to nothing for 1 and 2 to divide: then each process holds all.

    Raises:
        RunError: it asks for something that this library does not do, or that does not go with what trains.
    """
    asked = _zero_asked(training) if _flag("ACCELERATE_USE_DEEPSPEED") else _fsdp_asked()
    if asked and training.quantize != "none":
        raise RunError("The launcher asks to share weights out (FSDP2, ZeRO-3), but training.quantize is set: what is in 4 bits stays "
                       "whole in every process. Launch with torchrun.")
    return asked if processes.world() > 1 else None


def launcher_notice(training: Training) -> str | None:
    """What a user should know who launches with a configuration for DeepSpeed.

    Raises:
        RunError: as ``sharing_asked``, whatever the launcher's configuration is for.
    """
    sharing = sharing_asked(training)
    if not _flag("ACCELERATE_USE_DEEPSPEED"):
        return None
    here = "PyTorch's FSDP2 does what that stage does here, not DeepSpeed" if sharing else "Each process holds the whole model here"
    return (f"The launcher asks for DeepSpeed's ZeRO stage {_zero()[0]}. {here}, and nothing else of the configuration is read: precision, "
            "clipping, rates and batches are the recipe's.")


def _fsdp_asked() -> Sharing | None:
    if not _flag("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RunError("The launcher asks for FSDP 1. Set fsdp_version: 2 in its configuration, as in examples/fsdp2.yaml.")
    if _flag("FSDP_OFFLOAD_PARAMS"):
        raise RunError("fsdp_offload_params is not supported. Set it to false, and use more processes where memory is short.")
    return Sharing(again=_flag("FSDP_RESHARD_AFTER_FORWARD", "true"))


def _zero_asked(training: Training) -> Sharing | None:
    stage, offload = _zero()
    if offload:
        raise RunError("The launcher asks DeepSpeed to keep a part of the training in the host's memory or on disk (offload), which is not "
                       "supported. Set offload_optimizer_device and offload_param_device to none, and use more processes where memory is "
                       "short.")
    if stage == 3 or (stage in (1, 2) and training.train == "full"):
        return Sharing(again=stage == 3)
    return None


def _zero() -> tuple[int, bool]:
    """Stage and whether anything is to leave the device, as accelerate would read them: DeepSpeed's own file (a path, or JSON in base64) if
    there is one, else accelerate's variables."""
    given = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if given.lower() == "none":
        stage: Any = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        places = [os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in ("OPTIMIZER", "PARAM")]
    else:
        try:
            # Not Path.exists: it fails on what is too long for a name.
            text = Path(given).read_bytes() if os.path.exists(given) else base64.urlsafe_b64decode(given)
            zero = json.loads(text).get("zero_optimization", {})
            stage = zero.get("stage", 0)
            places = [(zero.get(f"offload_{what}") or {}).get("device", "none") for what in ("optimizer", "param")]
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"DeepSpeed's configuration {given!r} (deepspeed_config_file) cannot be read: {first_line(error)}") from error
    if str(stage) not in ("0", "1", "2", "3"):
        raise RunError(f"The launcher asks for DeepSpeed's ZeRO stage {stage!r}. There are 0, 1, 2 and 3.")
    return int(stage), any(place != "none" for place in places)


def shard(adapted: Adapted, device: torch.device, sharing: Sharing) -> Adapted:
    """Share the layers out among all processes: what is frozen of them, or all of it where all weights train. Changes the model, which may
    still be on the processor: layers go to the device one at a time, so that it need not hold the whole model.

    Args:
        adapted: with its adapter loaded; no short ways switched on yet.
        device: this process's.
        sharing: what the launcher asked for.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    decoder = adapted.base.get_decoder()
    ends = [adapted.base.get_input_embeddings(), adapted.head]
    whole = {parameter for end in ends for parameter in end.parameters()}
    if adapted.train != "full":
        whole |= {*adapted.trainable().values()}
    mesh = init_device_mesh(device.type, (processes.world(),))
    # A part of a master is float32, and is rounded before it is lent: what masters.py would do after. Gradients are added in float32.
    policy = MixedPrecisionPolicy(adapted.head.rows.compute_dtype, torch.float32, cast_forward_inputs=False)
    for module, reshard in (*((layer, sharing.again) for layer in _layers(decoder)), (decoder, True)):
        shared = fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=reshard, mp_policy=policy)
        shared.set_gradient_divide_factor(1.0)  # the loss is divided by the labels of all processes already
        shared.set_force_sum_reduction_for_comms(True)  # gloo knows sums only
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for end in ends:
        for name, buffer in end.named_buffers(recurse=False):
            setattr(end, name, buffer.to(device))
    adapted.sharded = True
    return adapted


def _layers(decoder: nn.Module) -> nn.ModuleList:
    """The repeated layers: the list of modules that holds most of the weights."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def _flag(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in ("true", "1", "yes")
