"""The stages: each one a function, folders in, one folder out; and what runs, plans and shows them."""

from transllm.pipeline.inspect import Example, inspect_failed, inspect_rows, inspect_tcot
from transllm.pipeline.plan import Plan, plan
from transllm.pipeline.run import Run, StageStatus, status, transform
from transllm.pipeline.stage import Context, Result, Stage
from transllm.pipeline.stages import STAGES
from transllm.pipeline.standalone import extend_model
from transllm.progress import Progress, Silent, Task

__all__ = [
    "STAGES",
    "Context",
    "Example",
    "Plan",
    "Progress",
    "Result",
    "Run",
    "Silent",
    "Stage",
    "StageStatus",
    "Task",
    "extend_model",
    "inspect_failed",
    "inspect_rows",
    "inspect_tcot",
    "plan",
    "status",
    "transform",
]
