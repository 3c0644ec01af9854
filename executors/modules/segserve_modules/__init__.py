"""Runs algorithm modules (Compox, T3D) outside of their servers; see `__main__`."""

__version__ = "0.1.0"
