"""How the model was trained, its learning curves, and what it costs."""

from __future__ import annotations

from scorebayes.plots import charts as figures
from scorebayes.report.files import Run
from scorebayes.report.parts import (
    Panel,
    Section,
    Table,
    not_evaluated,
    seconds,
)

_CURVES = {
    "learning": "training images of each class",
    "imbalance": "images of the common class per image of the rare class",
}


def training(run: Run) -> Section:
    title, log = "Training", run.log
    losses = log.dropna(subset=["step", "loss"])
    if losses.empty:
        return Section(
            "training", title, missing="there is no training log", command=run.command("train --resume")
        )
    caption = "The thin line shows every record, the thick line a running mean. The loss says nothing about the classes."
    panels = [Panel(figures.training_loss(losses["step"].to_numpy(), losses["loss"].to_numpy()), caption)]
    checks = log.dropna(subset=["step", "val_log_loss"])
    words, chosen = [], None
    if len(checks):
        chosen = int(checks["step"].iloc[int(checks["val_log_loss"].to_numpy().argmin())])
        step, loss, auc = (checks[name].to_numpy() for name in ("step", "val_log_loss", "val_auc"))
        caption = "The checkpoint with the lowest validation log-loss is used. Lower log-loss and higher AUC are better."
        panels.append(Panel(figures.validation(step, loss, auc, chosen), caption))
    else:
        words.append("Not done: no validation was recorded during training.")
    numbers = {
        "steps": int(losses["step"].max()),
        "seconds": losses["seconds"].max(),
        "lowest_val_log_loss_at": chosen,
        "loss": losses[["step", "loss"]].to_numpy(),
        "validation": checks[["step", "val_log_loss", "val_auc"]].to_numpy(),
    }
    return Section("training", title, words, panels=panels, numbers=numbers)


def curves(run: Run) -> Section:
    """``curves.json``: for "learning" and "imbalance", of each model ``x``, ``auc``, ``low`` and ``high``, lists."""
    title = "Learning and imbalance curves"
    found = {name: run.curves[name] for name in _CURVES if run.curves.get(name)}
    absent = [name for name in _CURVES if name not in found]
    if not found:
        return Section(
            "curves", title, missing="the model was not trained on smaller or more imbalanced sets"
        )
    panels = [
        Panel(
            figures.learning(models, name, _CURVES[name]),
            "AUC on test images against the size or balance of the training set. Bands are 95 % intervals.",
        )
        for name, models in found.items()
    ]
    words = [f"Not done: the {name} curve." for name in absent]
    return Section("curves", title, words, panels=panels, numbers=found)


def cost(run: Run) -> Section:
    title, m, log = "Cost", run.metrics, run.log
    rows = []
    if m.get("nfe_per_image") is not None:
        rows.append(("network evaluations per image", f"{m['nfe_per_image']:.1f}"))
    if m.get("seconds_per_image") is not None:
        rows.append(("time per image, all classes", seconds(m["seconds_per_image"])))
    if log["step"].notna().any():
        rows.append(("training steps", f"{log['step'].max():.0f}"))
    if log["seconds"].notna().any():
        rows.append(("training time", seconds(float(log["seconds"].max()))))
    if log["images_per_second"].notna().any():
        rows.append(("training images per second (median)", f"{log['images_per_second'].median():.0f}"))
    if not rows:
        return not_evaluated(run, "cost", title)
    return Section("cost", title, tables=[Table("What it costs", ("", ""), rows)], numbers=dict(rows))
