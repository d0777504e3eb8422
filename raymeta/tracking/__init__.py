"""Sends a finished run to trackers: its meta-test, and its network as a model."""
