"""Experiment files: their schema, how they are read and checked, and the shipped ones."""
