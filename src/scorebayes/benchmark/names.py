"""The names of benchmarks and models, in JSON files and for readers."""

from __future__ import annotations

BENCHMARKS = {
    "breastmnist": "BreastMNIST",
    "pneumoniamnist": "PneumoniaMNIST",
    "ddsm64": "DDSM, 64 x 64",
    "phantom": "Synthetic mammograms",
}
PRETRAINED = {
    "breastmnist-224": "BreastMNIST, 224 pixels, pretrained features",
    "cbis-128": "CBIS-DDSM, whole views at 128 pixels, pretrained features",
}
"""Benchmarks whose models start from weights trained on other images; on tables of their own."""
MASK_BENCHMARKS = {
    "segmentation-busi": "BUSI, lesions in breast ultrasound, 64 x 64",
    "segmentation-phantom": "Synthetic mammograms, lesions",
}
"""Benchmarks of segmentation."""
OURS, MORE = "scorebayes-generative", "scorebayes-generative-64"
REFERENCE = "resnet18"
"""The network that our models are mainly compared with."""
WITH_REFERENCE = "scorebayes-with-resnet18"
"""The mean log-odds of the generative posterior and of that network. It is no longer generative; shown for comparison."""
BEST = "scorebayes-best"
"""The same with the two baselines that were best on validation. Equal shares, nothing is fitted; our best variant there
(docs/decisions/0010)."""
CONTROL = "two-baselines"
"""``BEST`` without our model: the two baselines alone."""
WITHOUT_OURS = {WITH_REFERENCE: REFERENCE, BEST: CONTROL}
ENSEMBLE = "{}-ensemble"
"""The mean of a model's seeds."""

TITLES = {
    OURS: "ScoreBayes",
    MORE: "ScoreBayes, 64 evaluations",
    WITH_REFERENCE: "ScoreBayes and ResNet-18",
    BEST: "ScoreBayes and two baselines",
    CONTROL: "the two baselines alone",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "efficientnet-b0": "EfficientNet-B0",
    "vit": "ViT",
    "hog-svm": "HOG + SVM",
    "logistic": "logistic regression on pixels",
    "logistic-on-features": "logistic regression on pretrained features",
    "logistic-on-statistics": "logistic regression on statistics of pretrained features",
    "fine-tuned": "the encoder, fine-tuned",
    "fine-tuned-last-block": "the encoder, its last block fine-tuned",
}
"""The names of the models for readers."""


def alone(source: str) -> str:
    """One source of evidence of ``OURS``, calibrated by itself."""
    return f"scorebayes-{source}-alone"


def is_alone(model: str) -> bool:
    return model.startswith("scorebayes-") and model.endswith("-alone")


def title_of(model: str) -> str:
    """The name of a model for readers."""
    if is_alone(model):
        return f"ScoreBayes, {model.removeprefix('scorebayes-').removesuffix('-alone')} alone"
    return TITLES.get(model, model)
