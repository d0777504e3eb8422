"""Sequences from the user's files, and how their units are dealt into meta-splits."""
