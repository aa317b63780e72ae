"""What stops a training that goes wrong in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from transllm.errors import TrainingError
from transllm.files import write_json
from transllm.training.step import StepDone


def refuse_not_a_number(done: StepDone, bins: Sequence[Sequence[int]], *, folder: Path, seed: int) -> None:
    """Stop where the loss or the gradient is not finite, before the optimiser sees it.

    Raises:
        TrainingError: it is not; the rows of the step are listed in ``folder``.
    """
    if math.isfinite(done.nats) and math.isfinite(done.norm):
        return
    write_json(folder / "not_a_number.json", {"seed": seed, "rows": [list(members) for members in bins]})
    raise TrainingError(f"The loss is not a number (loss {done.nats}, gradient norm {done.norm}). The rows of this step are listed in "
                        f"{folder / 'not_a_number.json'}. Lower the learning rate, or look at them with 'transllm inspect batch'.")
