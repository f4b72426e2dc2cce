"""The run directory: its configuration, its images, its shards."""
