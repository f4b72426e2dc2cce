"""One file per source of evidence."""
