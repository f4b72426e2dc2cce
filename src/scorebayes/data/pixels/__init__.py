"""From files of any format to pixels."""

VERSION = 2
"""Increase it when the pixels of a readable file change: prepared images that are kept are then made again."""
