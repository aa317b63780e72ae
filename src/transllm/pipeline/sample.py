"""A model of a recipe's kind, cut down so that it can be measured: few layers, random weights, rows of random ids, and a stopwatch."""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from transllm.model import Adapted
from transllm.model.source import quiet
from transllm.pipeline.workload import Learning
from transllm.progress import Silent
from transllm.training import EncodedRow, Packed, Rows, write_rows

Clock = Callable[[], float]


class Stopwatch(Silent):
    """Progress that notes when something advanced."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times: list[float] = []
        self._by: list[float] = []

    def advance(self, n: float, note: str = "") -> None:
        self._times.append(self._clock())
        self._by.append(n)

    @property
    def laps(self) -> list[float]:
        """Seconds between two advances."""
        return [later - earlier for earlier, later in pairwise(self._times)]

    @property
    def by(self) -> list[float]:
        """How far each lap came."""
        return self._by[1:]


def room(device: torch.device) -> float:
    """Bytes for the weights of the sample: a part of an accelerator's free memory, and little of the machine's."""
    return torch.cuda.mem_get_info(device)[0] / 4 if device.type == "cuda" else 0.4 * 2**30


def cut_config(config: Any, layers: int, rows: int, narrow: int) -> Any:
    """A config with so many layers and rows of the vocabulary; ``narrow`` divides all widths."""
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    set_depth(text, layers)
    text.vocab_size = cut.vocab_size = rows
    text.pad_token_id = cut.pad_token_id = None  # may lie behind the end of a part of the vocabulary
    if narrow > 1:
        # Heads become fewer, not smaller: rotary positions need an even size.
        text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            if getattr(text, name, None):
                setattr(text, name, max(1, getattr(text, name) // narrow))
    return cut


def set_depth(text: Any, layers: int) -> None:
    """Tell a config how many layers there are."""
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers = layers


def build(config: Any, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Small random weights, one block of numbers again and again: drawing each would take longer than measuring."""
    factory: Any = AutoModelForCausalLM  # transformers' factories carry no types
    with quiet(), no_init_weights(), torch.device(device):
        model: PreTrainedModel = factory.from_config(config, dtype=dtype)
    noise = torch.empty(2**20, dtype=dtype, device=device).uniform_(-0.05, 0.05, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            for part in parameter.data.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)])
    model.eval()
    return model


def repeated(decoder: nn.Module) -> nn.ModuleList:
    """The list of modules that holds most of the weights."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def random_rows(folder: Path, work: Learning, *, tokens: int, longest: int, vocabulary: int) -> Rows:
    """Rows of random ids and lengths, with the stage's share of labels at their ends: prompts come first."""
    draw, rows = random.Random(0), []
    while tokens > 0:
        length = max(2, min(longest, draw.randint(work.row // 2, work.row * 3 // 2)))
        learned = max(1, min(length - 1, round(work.labelled * length)))
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        rows.append(EncodedRow(ids, [False] * (length - learned) + [True] * learned, 4 * learned))
        tokens -= length
    return write_rows(rows, folder)


def kept(adapted: Adapted, batch: Packed) -> int:
    """Bytes of all storages that autograd keeps after a forward pass up to the head, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in adapted.peft.parameters()}
    own |= {buffer.untyped_storage().data_ptr() for buffer in adapted.peft.buffers()}
    sizes: dict[int, int] = {}
    held: list[torch.UntypedStorage] = []  # so that none is freed and its address used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        held.append(storage)
        return tensor.detach()  # a node that keeps its own output would else never be freed

    adapted.peft.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted.hidden(batch.ids_1T, batch.documents)
    return sum(size for place, size in sizes.items() if place not in own)


def seconds_a_number(device: torch.device, clock: Clock) -> float:
    """An update by fused AdamW, for each number."""
    numbers = nn.Parameter(torch.zeros(4_000_000, device=device))
    numbers.grad = torch.ones_like(numbers)
    optimizer = torch.optim.AdamW([numbers], fused=True)
    laps = []
    for _ in range(5):
        start = clock()
        optimizer.step()
        float(numbers[0].detach())  # waits for an accelerator
        laps.append(clock() - start)
    return statistics.median(laps) / numbers.numel()
