"""The Ray actor that runs a trial, and its data-parallel workers."""
