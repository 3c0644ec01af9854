"""The queue at work: one scheduler per home, one worker process per job. Nobody imports the two entry points.

`python -m segserve.scheduler` looks for jobs that nobody drives any more and for jobs that wait, and gives each to a
worker (`python -m segserve.scheduler.worker`) that it has started in advance. It never touches a job itself. Workers
outlive it, supervisors outlive workers; whatever is killed, the next scheduler goes on from journal and job folders.
"""

from segserve.scheduler.loop import Scheduler
from segserve.scheduler.slots import slots

__all__ = ["Scheduler", "slots"]
