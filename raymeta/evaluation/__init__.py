"""The meta-test: scores of a network beside the controls that it must beat."""
