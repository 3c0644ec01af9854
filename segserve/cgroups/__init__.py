"""Control groups: walls of the kernel around the memory and the number of processes of one attempt.

`places` (whether this process may make groups, in version 2 or 1 of the interface, and where) · `group` (one group:
made, bounded, watched, killed, removed). Rules and file names are those of the kernel's cgroup-v2.rst and cgroup-v1/,
and of https://systemd.io/CGROUP_DELEGATION for whose business a group is.
"""

from __future__ import annotations

from segserve.cgroups.group import Group, plan, recorded
from segserve.cgroups.places import CONTROLLERS, Place, Unavailable, find

__all__ = ["CONTROLLERS", "Group", "Place", "Unavailable", "find", "plan", "recorded"]
