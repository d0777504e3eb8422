"""What a tracker gets of a finished run: the meta-test, and the network as a model of its own."""
