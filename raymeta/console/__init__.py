"""Terminal output: live progress, tables and messages."""
