"""Segmentation: the posterior over masks, by a score model on signed distances, conditional on the image."""
