"""`python -m raymeta` is `raymeta`."""

from raymeta.cli import main

main()
