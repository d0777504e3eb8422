"""Use of a trained network: adapt it to the examples of a new task, and predict others."""
