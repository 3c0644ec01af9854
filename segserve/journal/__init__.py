"""The record of all jobs: one sqlite file in WAL mode. A job is written down before anything of it starts.

Whoever drives a job claims it first. A claim raises the job's *fence*, an integer, and every later write says
`… WHERE id = ? AND fence = ?`: a driver that was suspended, or whose job was taken over, finds its fence stale and
changes nothing. States move along `model.MOVES` alone. Supervisors never open this file.

`schema` (tables) → `file` (the sqlite file) → `records` (what a row means) → `rows` (statements that both sides need)
→ `jobs` (`Journal`: one job at a time) and `queue` (`Queue`: which job is next, for whom, and how often it is tried).
"""

from segserve.journal.file import file_system, refuse_network_file_system
from segserve.journal.jobs import Journal
from segserve.journal.queue import Claim, Passage, Queue, Submission, Submitted
from segserve.journal.quotas import Quota
from segserve.journal.records import IllegalMove, JobRecord, StaleFence, new_job_id

__all__ = [
    "Claim",
    "IllegalMove",
    "JobRecord",
    "Journal",
    "Passage",
    "Queue",
    "Quota",
    "StaleFence",
    "Submission",
    "Submitted",
    "file_system",
    "new_job_id",
    "refuse_network_file_system",
]
