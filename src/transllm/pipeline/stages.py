"""The stages in their order, with what each reads: the whole pipeline on one page."""

from __future__ import annotations

from transllm.pipeline.bridge import bridge
from transllm.pipeline.evaluate import evaluate
from transllm.pipeline.extend import extend
from transllm.pipeline.merge import merge
from transllm.pipeline.prepare import prepare
from transllm.pipeline.recover import recover
from transllm.pipeline.stage import Stage
from transllm.pipeline.training_stages import bitext, finetune, pretrain

_LEARNED = ("recover.by", "recover.logits")  # how the answers are learned, which *recover* does not need to know

STAGES: tuple[Stage, ...] = (
    Stage("prepare", (), ("data", "language"), prepare),
    Stage("extend", ("prepare",), ("model", "language", "extend"), extend, version=2),
    Stage("pretrain", ("prepare", "extend"), ("pretrain", "training"), pretrain, shared=True),
    Stage("bitext", ("prepare", "extend", "pretrain"), ("bitext", "training"), bitext, shared=True),
    Stage("recover", (), ("model", "recover", "evaluate.answers"), recover, version=2, apart=_LEARNED),
    Stage("bridge", ("extend", "bitext", "recover"), ("bridge",), bridge, version=3),
    Stage("finetune", ("prepare", "extend", "bitext", "recover", "bridge"), ("finetune", "training", *_LEARNED), finetune, version=5,
          shared=True),
    Stage("merge", ("extend", "finetune"), ("merge",), merge),
    Stage("evaluate", ("prepare", "extend", "pretrain", "bitext", "recover", "finetune", "merge"), ("evaluate",), evaluate,
          version=2),
)
