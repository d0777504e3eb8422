"""ONNX graphs of a network: adapted, adapting itself, or one time step after another."""
