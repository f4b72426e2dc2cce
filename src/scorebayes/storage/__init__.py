"""The ground floor of files: written whole or not at all, with digests, for people and for machines."""
