"""Weights that executors download, on machines that cannot: put where the kit looks first."""

from __future__ import annotations

import hashlib
from pathlib import Path

from segserve.layout import Home
from segserve.pipeline.confinement import Cache
from segserve.refs import Pin


def place(home: Path, executor: Path, url: str, *, subdir: str = "") -> Path:
    """Where the file behind `url` lies in the cache that the executor in a folder of the work tree `executor` gets."""
    cache = Cache(Home(home), Pin(executor.resolve().as_uri(), "0" * 40, subdir)).make()
    folder = cache / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / url.rpartition("/")[2]


# Run by a Python that has cellpose: the network in the first file, as wide as those that Cellpose publishes. The new
# channels are zeros, so it computes the same.
WIDEN = """
import sys, torch
from cellpose.resnet_torch import CPnet
narrow = torch.load(sys.argv[1], weights_only=True)
wide = CPnet([2, 32, 64, 128, 256], 3, sz=3, mkldnn=False, max_pool=True).state_dict()
for name, values in wide.items():
    values.zero_()
    values[tuple(slice(size) for size in narrow[name].shape)] = narrow[name]
torch.save(wide, sys.argv[2])
"""
