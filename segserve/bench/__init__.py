"""Executors side by side on one annotated set: executors, commits, trained models or parameter values.

candidates   what is compared: references × a grid of parameter values
rows         what came out of each, and their ranking
drive        run them one after the other, under one MLflow run
pages        the ranked table as text, Markdown and HTML
"""

from segserve.bench.candidates import Candidate, expand, split_values
from segserve.bench.drive import EXPERIMENT, Setup, run
from segserve.bench.pages import cells, markdown
from segserve.bench.rows import RANKINGS, Benchmark, Row

__all__ = [
    "EXPERIMENT",
    "RANKINGS",
    "Benchmark",
    "Candidate",
    "Row",
    "Setup",
    "cells",
    "expand",
    "markdown",
    "run",
    "split_values",
]
