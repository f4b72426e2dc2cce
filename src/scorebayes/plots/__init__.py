"""Figures as inline SVG; nothing here reads a run."""
