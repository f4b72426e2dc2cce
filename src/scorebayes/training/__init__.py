"""Fits a score to labelled arrays; knows no run and no task."""
