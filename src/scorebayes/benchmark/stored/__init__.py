"""Analysis of stored results."""
