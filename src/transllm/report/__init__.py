"""One page that says what a run did: ``build_report(run)`` reads a run folder and writes report.html into it."""

from __future__ import annotations

from transllm.report.page import build_report

__all__ = ["build_report"]
