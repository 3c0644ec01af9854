"""Mirrors and checkouts on disk, and the one kind of lock that everything uses."""

from segserve.store.locks import age, locked
from segserve.store.mirror import Mirror
from segserve.store.store import Resolution, Store

__all__ = ["Mirror", "Resolution", "Store", "age", "locked"]
