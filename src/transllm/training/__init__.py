"""One training loop for every stage: encoded rows, packing, loss, checkpoints."""

from transllm.training.checkpoint import Checkpoints
from transllm.training.interrupts import Interrupted
from transllm.training.loop import TrainReport, train
from transllm.training.loss import IGNORE, summed_cross_entropy
from transllm.training.packing import Packed, batches_of, pack
from transllm.training.rows import EncodedRow, Rows, write_rows

__all__ = [
    "IGNORE",
    "Checkpoints",
    "EncodedRow",
    "Interrupted",
    "Packed",
    "Rows",
    "TrainReport",
    "batches_of",
    "pack",
    "summed_cross_entropy",
    "train",
    "write_rows",
]
