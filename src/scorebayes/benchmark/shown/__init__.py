"""Pages, tables and figures of stored results."""
