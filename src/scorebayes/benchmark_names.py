"""What the models of a benchmark are called in its JSON file, for those who write, draw or print it."""

from __future__ import annotations

OURS, MORE = "scorebayes-generative", "scorebayes-generative-64"
PARTNER = "resnet18"
BEST = "scorebayes-best"
"""The mean log-odds of the generative and of a discriminative posterior (``PARTNER``): not generative any more, and shown
beside it. Equal shares, nothing is fitted; the best variant on validation (docs/decisions/0010)."""
TWICE = "resnet18-twice"
"""The control of ``BEST``: the mean log-odds of two partners, a seed's and the next's: what two models of one kind bring."""
ENSEMBLE = "{}-ensemble"
"""The mean of a model's seeds."""
