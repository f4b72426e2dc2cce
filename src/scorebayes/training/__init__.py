"""Fits a score to labelled arrays, independently of runs and tasks."""
