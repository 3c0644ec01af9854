"""A service elsewhere, in the words of `api`: run, jobs, show, logs, cancel, executors.

    connection   requests, tried again when the network fails; errors become ours again, with their exit codes
    upload       images as a form, streamed, the same bytes at every try
    events       what a job says, each thing once, also across lost connections
    run          upload, follow, download: a result folder like that of a local run

Nothing here knows the server's room: what crosses is HTTP (docs/service.md).
"""

from segserve.client.connection import Connection
from segserve.client.remote import Remote

__all__ = ["Connection", "Remote"]
