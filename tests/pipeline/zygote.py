"""A process that has imported everything and forks a command line for each request: a run in milliseconds, not in seconds.

Each line of its standard input is a request: ``{"args": [...], "folder": ..., "input": ..., "file_limit": bytes or null, "environment":
{...}}`` starts a command, ``{"wait": PID}`` waits for its end. Each answer is a line of JSON. With PRETEND_DEVICE in its environment a
command finds an accelerator (``pretend_device.py``).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

import accelerate  # noqa: F401
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import peft  # noqa: F401
import sacrebleu  # noqa: F401
import torch._dynamo  # noqa: F401  # peft and accelerate import it late
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import transllm.chat
import transllm.model.shard
import transllm.pipeline
import transllm.report  # noqa: F401
from transllm.cli import main as transllm_command


def command(request: dict) -> None:
    """Become ``transllm ARGS``; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(request["folder"])
        for number, name in ((0, request["input"]), (1, "stdout"), (2, "stderr")):
            file = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        if request["file_limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= request["environment"]
        if "PRETEND_DEVICE" in os.environ:
            import pretend_device  # noqa: F401
        sys.argv = ["transllm", *request["args"]]
        transllm_command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            command(request)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
