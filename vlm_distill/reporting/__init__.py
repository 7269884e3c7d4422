"""One self-contained HTML page per run, made from what lies in its folder."""

from vlm_distill.reporting.page import write_report

__all__ = ["write_report"]
