"""``python -m transllm.cli`` is ``transllm``."""

from __future__ import annotations

from transllm.cli.app import main

if __name__ == "__main__":
    main()
