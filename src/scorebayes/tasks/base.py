"""A task: what the evidence is turned into, what is told of each image, and how answers are judged."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import pandas as pd
from numpy.typing import NDArray

from scorebayes.decision.decision import Decision
from scorebayes.decision.table import EvidenceTable
from scorebayes.runs.run import Run


class Task(Protocol):
    """What an answer is."""

    name: ClassVar[str]

    def decide(self, run: Run, table: EvidenceTable) -> Decision:
        """All that validation images fix, from their evidence."""
        ...

    def answers(
        self,
        run: Run,
        table: EvidenceTable,
        decision: Decision,
        log_prior: NDArray | None = None,
        *,
        pixels: NDArray | None = None,
    ) -> pd.DataFrame:
        """One row per image of a table. ``pixels`` [N, C, S, S]: the images (``Run.pixels``). ``log_prior``: another prior
        than the run's."""
        ...

    def abstain(self, answers: pd.DataFrame, decision: Decision, force: bool = False) -> pd.DataFrame:
        """The same with a reason in place of an answer where there is none; ``force``: also for atypical images."""
        ...

    def judge(self, run: Run, table: EvidenceTable, decision: Decision, patients: NDArray) -> dict[str, Any]:
        """Metrics of labelled images that all have evidence; patients [N], None where unknown."""
        ...
