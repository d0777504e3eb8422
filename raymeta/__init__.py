"""raymeta: meta-trained recurrent networks, tuned by Bayesian optimisation on Ray."""
