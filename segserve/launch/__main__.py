"""`python -m segserve.launch`."""

from segserve.launch.supervisor import main

main()
