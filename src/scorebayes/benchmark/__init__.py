"""Benchmarks: everything that measures, compares and writes ``benchmarks/results/``; nothing that a user's run needs.

``accuracy`` (all models over seeds) and ``data_curves`` (few, skewed, wrongly labelled data) train with ``seeds`` and sum
up with ``summary``; earlier results come from ``earlier``. The answers of the models are in ``answers`` and, stored, in
``posteriors``, which ``compare``, ``hindsight`` and ``site`` read. The others take a trained run: ``speed``, ``evidence``,
``ood``, ``robustness``, ``adversarial``. ``page`` and ``figures`` show the results from their files.
"""
