"""Task distributions, from which episodes are drawn."""
