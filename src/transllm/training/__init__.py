"""One training loop for every stage: encoded rows, packing, loss, checkpoints."""

from transllm.training.checkpoint import Checkpoints
from transllm.training.interrupts import Interrupted
from transllm.training.loop import TrainReport, train
from transllm.training.loss import IGNORE, final_logits, summed_cross_entropy, summed_kl
from transllm.training.mirror import Recovery
from transllm.training.packing import Packed, batches_of, pack
from transllm.training.rows import DRAWS, ByOriginal, Drawn, EncodedRow, Rows, write_rows

__all__ = [
    "DRAWS",
    "IGNORE",
    "ByOriginal",
    "Checkpoints",
    "Drawn",
    "EncodedRow",
    "Interrupted",
    "Packed",
    "Recovery",
    "Rows",
    "TrainReport",
    "batches_of",
    "final_logits",
    "pack",
    "summed_cross_entropy",
    "summed_kl",
    "train",
    "write_rows",
]
