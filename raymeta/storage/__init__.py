"""Paths on any storage, files written whole or not at all, and the storage Ray Tune uses."""
