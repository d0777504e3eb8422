"""Runs searches on clusters: checks cluster files, submits searches, fetches runs."""
