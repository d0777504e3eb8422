"""Task distributions: what an episode is drawn from."""
