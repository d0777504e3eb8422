"""An HTTP server that adapts a run's network to tasks, keeps them, and predicts by them."""
