"""ScoreBayes: medical image classification with score-based generative models and Bayes' rule.

    run = scorebayes.open_run("runs/breast")
    print(run.predict("case.dcm"))

The same step by step:

    image = scorebayes.read_image("case.dcm")
    x     = run.prepare(image)
    table = run.evidence(x, keys=["case"])
    post  = scorebayes.bayes(table, run.log_prior, run.calibration)

    model = scorebayes.ScoreBayesClassifier().fit(images, labels)  # a scikit-learn classifier
    model = scorebayes.ScoreBayesSegmenter().fit(images, masks)    # the same for masks

Names are imported when first used, so that ``import scorebayes`` and the command line start quickly.
"""

from __future__ import annotations

import importlib
import typing

__version__ = "0.1.0"

if typing.TYPE_CHECKING:
    from scorebayes.data import open_source, read_image
    from scorebayes.decision.posterior import bayes
    from scorebayes.opening import open_run
    from scorebayes.sklearn import ScoreBayesClassifier
    from scorebayes.sklearn_segmenter import ScoreBayesSegmenter

_PLACES = {
    "ScoreBayesClassifier": "scorebayes.sklearn",
    "ScoreBayesSegmenter": "scorebayes.sklearn_segmenter",
    "bayes": "scorebayes.decision.posterior",
    "open_run": "scorebayes.opening",
    "open_source": "scorebayes.data",
    "read_image": "scorebayes.data",
}

__all__ = [
    "ScoreBayesClassifier",
    "ScoreBayesSegmenter",
    "__version__",
    "bayes",
    "open_run",
    "open_source",
    "read_image",
]


def __dir__() -> list[str]:
    """What is to be used, also before it is imported: for Tab and ``dir``."""
    return list(__all__)


def __getattr__(name: str) -> typing.Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'scorebayes' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
