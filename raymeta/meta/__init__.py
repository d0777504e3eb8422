"""Meta-learning algorithms as pure functions of parameters and episodes."""
