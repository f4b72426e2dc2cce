"""What an attacker can do: accuracy of the model and of a baseline under both attacks, at several budgets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from scorebayes.baselines import fit_baseline
from scorebayes.benchmark.trained.attacks import OurTarget, PeerTarget, Pgd, Square, Target, grey_levels
from scorebayes.benchmark.trained.images import score_images
from scorebayes.data.load import ImageSet
from scorebayes.errors import ConfigError
from scorebayes.metrics import wilson
from scorebayes.progress import progress_bar
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run

OURS = "ScoreBayes"
BUDGETS = (1, 2, 4, 8)  # in 255ths of full scale


def measure_adversarial(
    run: Run, images: int, peer: str, steps: int, queries: int, repeats: int, budgets: Sequence[int] = BUDGETS
) -> dict[str, Any]:
    """Accuracy before and after each attack; also written to ``RUN/adversarial.json``.

    Both models face the same test images. The query attack has the largest budget only. repeats: draws of every noise
    level that a step of an attack on our model averages over. ConfigError where ``peer`` cannot be differentiated.
    """
    if peer == "hog-svm":
        raise ConfigError("'hog-svm' has no gradient.", "Choose another baseline, such as resnet18.")
    some = run.images("test").drawn(images, run.config.seed)
    targets: dict[str, Target] = {OURS: OurTarget(run, repeats), peer: PeerTarget(fit_baseline(run, peer))}
    levels = dict(zip(budgets, grey_levels(budgets, some.bits), strict=True))
    attacks = [("PGD", Pgd(steps), budget) for budget in budgets] + [
        ("Square", Square(queries), max(budgets))
    ]
    rows = []
    with progress_bar("adversarial", len(targets) * (len(attacks) + 1)) as advance:
        for name, target in targets.items():
            rows.append({"model": name, "attack": "none", "budget": 0, **_outcome(run, name, target, some)})
            advance(len(rows), f"{name}, no attack")
            for title, attack, budget in attacks:
                changed = attack(run, target, some, levels[budget], run.config.seed)
                outcome = _outcome(run, name, target, changed)
                rows.append({"model": name, "attack": title, "budget": budget, **outcome})
                advance(len(rows), f"{name}, {title} {budget}/255")
    content = {
        "run": run.path.resolve().name,
        "data": run.facts.info.title,
        "command": f"scorebayes benchmark adversarial {run.path} --images {images}",
        "written": time.strftime("%Y-%m-%d"),
        "images": len(some),
        "peer": peer,
        "steps": steps,
        "queries": queries,
        "repeats": repeats,
        "results": rows,
        "environment": environment(run.device),
    }
    run.write_json("adversarial.json", content)
    return content


def _outcome(run: Run, name: str, target: Target, images: ImageSet) -> dict[str, Any]:
    """Accuracy by the most probable class; for our model, the share that typicality declines."""
    right = target.prob(images).argmax(1) == images.labels
    found: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "accuracy_ci95": wilson(int(right.sum()), len(right)),
    }
    judge = run.decision.typicality
    if name == OURS and judge is not None:
        distance = judge.distance(score_images(run, images, run.likelihood), run.pixels(images))
        found["declined"] = float((distance > judge.threshold).mean())
        found["wrong_and_not_declined"] = float((~right & (distance <= judge.threshold)).mean())
    return found
