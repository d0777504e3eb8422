"""The experiment files that come with raymeta."""
