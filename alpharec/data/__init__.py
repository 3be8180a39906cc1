"""Datasets from files: read, checked, filtered, split, kept as one artifact."""
