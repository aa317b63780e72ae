"""Weights shared out among processes (FSDP2): each keeps a part of every layer, and lends it while the layer is at work.

An adapter stays whole on every process, with its optimiser state: it is a few hundredths of a model, and one process can write a checkpoint
of it alone. Where all weights train, each process has the gradients and the optimiser state of its part only, and all must help to write a
checkpoint. Embedding and head stay whole in both cases: the loss calls the head outside the model's own pass. So what the layers
take, nearly all of a large model, is divided by the number of processes. A checkpoint is the same file in all cases.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from transllm import processes
from transllm.errors import RunError
from transllm.model.adapter import Adapted
from transllm.recipe.schema import Training


def sharding_asked(training: Training) -> bool:
    """Whether the launcher's configuration (``accelerate launch``, or its environment variables) asks for FSDP2.

    Raises:
        RunError: it asks for something that this library does not do, or that does not go with what trains.
    """
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        raise RunError("DeepSpeed is not supported. FSDP2 divides the layers among processes as ZeRO-3 does, with training.train 'full' "
                       "their gradients and optimiser state too: launch with examples/fsdp2.yaml. Without it every process holds all: "
                       "launch with torchrun.")
    if not _flag("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RunError("The launcher asks for FSDP 1. Set fsdp_version: 2 in its configuration, as in examples/fsdp2.yaml.")
    if _flag("FSDP_OFFLOAD_PARAMS"):
        raise RunError("fsdp_offload_params is not supported. Set it to false, and use more processes where memory is short.")
    if training.quantize != "none":
        raise RunError("The launcher asks to share weights out (FSDP2), but training.quantize is set: what is in 4 bits stays whole in "
                       "every process. Launch without FSDP.")
    return processes.world() > 1


def shard(adapted: Adapted, device: torch.device) -> Adapted:
    """Share the layers out among all processes: what is frozen of them, or all of it where all weights train. Changes the model, which may
    still be on the processor: layers go to the device one at a time, so that it need not hold the whole model.

    Args:
        adapted: with its adapter loaded; no short ways switched on yet.
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
    again = _flag("FSDP_RESHARD_AFTER_FORWARD", "true")
    for module, reshard in (*((layer, again) for layer in _layers(decoder)), (decoder, True)):
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
