"""The command that does everything: train, score, evaluate, explain and report."""

from __future__ import annotations

import inspect
from typing import Any

from scorebayes.cli import answer, learn
from scorebayes.cli.common import open_run_dir
from scorebayes.cli.face import Told


def all_command(**arguments: Any) -> Told:
    """Train, score, evaluate, explain and report in one go; run it again to resume.

    Takes the options of train. The test split is evaluated, or the validation split where there is none.

    Example: scorebayes all --data folder:images --out runs/mine
    """
    from scorebayes.data.split import judged_split

    run, device = arguments["out"], arguments["device"]
    trained = learn.train(**arguments, resume=(run / "config.toml").exists())
    split = judged_split(open_run_dir(run, "cpu").split["split"])
    answer.score(run, split, "", device)
    judged = answer.evaluate(run, split)
    answer.explain(run, split=split, device=device)
    written = answer.report(run)
    metrics = judged.words.partition("\nmetrics: ")[0]
    facts = {**trained.facts, "split": split, "metrics": judged.facts, "written": written.facts["written"]}
    words = f"{'test' if split == 'test' else 'validation'} split:\n{metrics}\n{written.words}"
    return Told(facts, words, (*trained.warnings, *judged.warnings), judged.code)


def _options_of_train() -> inspect.Signature:
    """Those of a training with labels; the run directory has to be named."""
    of_train = inspect.signature(learn.train, eval_str=True)
    left_out = ("run_dir", "task", "resume", "label_free")
    taken = [of for name, of in of_train.parameters.items() if name not in left_out]
    required = ("data", "out")
    options = [of.replace(default=inspect.Parameter.empty) if of.name in required else of for of in taken]
    return of_train.replace(parameters=sorted(options, key=lambda of: of.name not in required))


all_command.__signature__ = _options_of_train()  # type: ignore[attr-defined]
