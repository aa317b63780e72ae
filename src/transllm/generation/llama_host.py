"""The process in which llama.cpp works. It imports nothing of this library: it starts in the time that llama.cpp takes.

It reads one line of JSON (settings), writes one with its address, and ends when its standard input does, so that it never outlives
the process that started it, however that one ended.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Serve until standard input ends."""
    import xllamacpp

    settings = json.loads(sys.stdin.readline())
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.n_threads_http = settings["slots"] + 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = 0  # no prompt comes back
    params.verbosity = 1
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()
    os._exit(0)  # what is in its slots is not waited for


if __name__ == "__main__":
    main()
