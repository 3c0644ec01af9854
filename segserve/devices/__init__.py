"""GPUs: which there are (`nvml`), and leases on whole ones, machine-wide for all users (`leases`, `lockfiles`).

A lease is a flock on one file per GPU, in a folder that every user of the machine shares. The lock belongs to an open
file description, which the supervisor of an attempt inherits over a socket: it lives exactly as long as somebody holds
a copy, survives the command that took it, and the kernel gives it back after `kill -9`. What is written in the file is
for people only, and for finding what a killed supervisor may have left on the card.
"""

from segserve.devices.leases import Lease, clear, describe, lease, parse
from segserve.devices.lockfiles import shared_folder
from segserve.devices.nvml import Gpu, Inventory, driver_cuda, gpus, visible

__all__ = [
    "Gpu",
    "Inventory",
    "Lease",
    "clear",
    "describe",
    "driver_cuda",
    "gpus",
    "lease",
    "parse",
    "shared_folder",
    "visible",
]
