"""`segserve check --run`: an executor on small images, through the same pipeline as every job.

`pictures` what it gets · `look_on` what it does besides · `judge` what came out · `course` which probe runs when
"""
