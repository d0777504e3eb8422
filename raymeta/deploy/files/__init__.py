"""Cluster files: loading and checking them."""
