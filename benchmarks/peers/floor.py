"""The floor under a training step: the time of its matrix products executed alone, one after the other, on all cores.

Counted are, for a micro batch of n = 2,048 tokens, or one row that is longer, and for every layer with its own frozen weights as the model
holds them in memory:

- each linear layer, i inputs and o outputs: ``x W'`` forward and ``g W`` backward (a frozen W has no gradient of its own);
- its LoRA product of rank r: ``x A'`` and ``(x A') B'`` forward; ``g B``, ``(g B) A``, ``(g B)' x`` and ``g' (x A')`` backward;
- attention, in each document and query head: ``Q K'`` and ``P V`` forward, four products of that size backward, at the half of the
  square that a causal model needs (L queries by L / 2 keys, L the mean length that a token of these rows sees its document have);
- the head, only for the labels of the step: forward, and the gradient of the hidden states.

Each is one ``torch.mm`` (``bmm`` in attention) in the precision that our training computes in, into memory that was there before, and
the whole is run before it is timed. Nothing else of a step is in it: no norm, softmax, activation, loss, optimiser, allocation or
reading of data. The share of the floor is its seconds a token by ours. One implementation may pass it: products of a small model
do not share two cores perfectly, so two micro batches side by side on a core each can take less time than one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from peers.turns import Turns, asked
from transllm.model import compute_dtype, load_folder, place
from transllm.model.load import weight_of
from transllm.model.precision import matrix_flops
from transllm.training import Rows

_TOKENS = 2048


class Products:
    """The products of a step, on inputs that are made once for each shape.

    Attributes:
        flops: of all of them.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._made: dict[tuple[object, ...], Tensor] = {}
        self._calls: list[Callable[[], object]] = []
        self.flops = 0

    def mm(self, left: Tensor, right: Tensor) -> None:
        """One product (n, k) x (k, m), or a batch of them."""
        out = self.given("out", *left.shape[:-1], right.shape[-1])
        product = torch.mm if left.dim() == 2 else torch.bmm
        self._calls.append(lambda: product(left, right, out=out))
        self.flops += 2 * left.numel() * right.shape[-1]

    def given(self, name: str, *shape: int) -> Tensor:
        """A matrix of small random numbers, the same one for a name and shape."""
        if (name, shape) not in self._made:
            self._made[name, shape] = (torch.randn(*shape) * 0.02).to(self._device, self._dtype)
        return self._made[name, shape]

    def run(self) -> None:
        """All of them, once."""
        for call in self._calls:
            call()
        if self._device.type != "cpu":
            torch.accelerator.synchronize()


def add_linear(products: Products, weight_oi: Tensor, *, rank: int, tokens: int) -> None:
    """A frozen linear layer and its LoRA product."""
    outputs, inputs = weight_oi.shape
    x, gradient = products.given("x", tokens, inputs), products.given("g", tokens, outputs)
    a, b = products.given("a", rank, inputs), products.given("b", outputs, rank)
    inner, inner_gradient = products.given("xa", tokens, rank), products.given("gb", tokens, rank)
    for left, right in ((x, weight_oi.T), (gradient, weight_oi), (x, a.T), (inner, b.T), (gradient, b), (inner_gradient, a),
                        (inner_gradient.T, x), (gradient.T, inner)):
        products.mm(left, right)


def add_attention(products: Products, *, heads: int, size: int, length: int, tokens: int) -> None:
    """Causal attention of one layer inside documents of ``length`` tokens."""
    batch, keys = heads * max(1, round(tokens / length)), max(1, length // 2)
    wide, small, square = ("q", batch, length, size), ("k", batch, keys, size), ("p", batch, length, keys)
    q, k, p = (products.given(str(name), *shape) for name, *shape in (wide, small, square))
    for left, right in ((q, k.mT), (p, k), (q, k.mT), (p.mT, q), (p, k), (p.mT, q)):
        products.mm(left, right)


def typical_length(rows: Rows) -> int:
    """The mean over tokens of the length of the document that each is in."""
    return round(float((rows.lengths ** 2).sum() / rows.lengths.sum()))


def products_of(folder: Path, rows: Rows, *, rank: int, device: torch.device, tokens: int) -> Products:
    """The products of one step on so many tokens of these rows."""
    dtype = compute_dtype("auto", device)
    model, _ = load_folder(folder, dtype=dtype)
    model = place(model, device)
    config, head = model.config, weight_of(model.get_output_embeddings())
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    products, labels = Products(dtype, device), round(tokens * label_share(rows))
    layers: Sequence[torch.nn.Module] = model.get_decoder().layers
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                add_linear(products, module.weight.detach(), rank=rank, tokens=tokens)
        add_attention(products, heads=config.num_attention_heads, size=size, length=typical_length(rows), tokens=tokens)
    products.mm(products.given("x", labels, head.shape[1]), head.detach().T)
    products.mm(products.given("logits", labels, head.shape[0]), head.detach())
    return products


def label_share(rows: Rows) -> float:
    """Labels for each token."""
    return (int(rows.trained.sum()) - int(rows.trained[rows.offsets[:-1]].sum())) / rows.tokens


def main() -> None:
    """Run the products in turns until the input ends; a step is all of them once."""
    ask = asked()
    turns, device = Turns(ask["warm"]), torch.device(ask["device"])
    rows = Rows.open(Path(ask["rows"]))
    tokens = max(_TOKENS, typical_length(rows))
    products = products_of(Path(ask["model"]), rows, rank=ask["lora"]["r"], device=device, tokens=tokens)
    turns.flops = products.flops
    if device.type != "cpu":
        turns.matrix_flops = matrix_flops(compute_dtype("auto", device))
    with torch.inference_mode():
        while True:
            products.run()
            turns.count(tokens, round(tokens * label_share(rows)))
            turns.step_done()


if __name__ == "__main__":
    main()
