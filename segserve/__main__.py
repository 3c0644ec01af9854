"""`python -m segserve`."""

from segserve.cli import run_main

run_main()
