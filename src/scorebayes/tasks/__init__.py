"""What an answer is. One file a task; ``task_of`` says which one a run has."""

from __future__ import annotations

from scorebayes.runs.run import Run
from scorebayes.tasks.base import Task
from scorebayes.tasks.classify import Classification

TASKS: dict[str, Task] = {Classification.name: Classification()}

__all__ = ["TASKS", "Task", "task_of"]


def task_of(run: Run) -> Task:
    """The task of a run. There is one so far."""
    return TASKS[Classification.name]
