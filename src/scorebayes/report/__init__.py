"""The evaluation report of a run. ``files`` reads the run directory, ``sections`` turn it into text, tables and figures
(``parts``), ``page`` puts them into one HTML file, a JSON file and a model card. Nothing here needs torch."""

from __future__ import annotations

from scorebayes.report.page import write_report

__all__ = ["write_report"]
