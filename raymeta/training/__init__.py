"""Meta-training on one or several data-parallel workers; knows nothing of Ray."""
