"""Readers: one file a format; each turns one data file into `Sequences`."""
