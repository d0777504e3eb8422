"""Recurrent networks that can be differentiated twice, with an episode axis on all weights."""
