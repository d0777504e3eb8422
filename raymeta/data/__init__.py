"""Reads sequences from the user's files and deals their units into meta-splits."""
