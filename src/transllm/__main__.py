"""``python -m transllm`` is ``transllm``: launchers start modules."""

from __future__ import annotations

from transllm.cli.app import main

if __name__ == "__main__":
    main()
