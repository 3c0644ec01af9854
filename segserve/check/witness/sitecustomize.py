"""Runs inside the executor's Python when `segserve check --run` looks on: notes what is written and who is called.

Guest code for any Python >= 3.8: nothing but the standard library, no import of segserve. It only writes down
(https://docs.python.org/3/library/audit_events.html); what compiled code opens by itself it does not see.
"""

import os
import sys


def _watch(path):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def note(kind, what):
        line = "%s %s\n" % (kind, str(what).encode("unicode_escape").decode("ascii")[:2000])
        os.write(descriptor, line.encode())

    def hook(event, arguments):
        try:
            if event == "open" and isinstance(arguments[0], (str, bytes)):
                if arguments[2] and arguments[2] & writes:
                    note("write", os.path.abspath(os.fsdecode(arguments[0])))
            elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"):
                note("write", os.path.abspath(os.fsdecode(arguments[1 if event == "os.rename" else 0])))
            elif event == "socket.connect" and isinstance(arguments[1], tuple):
                note("connect", arguments[1][0])
        except Exception:  # noqa: S110 - whoever looks on must not be in the way
            pass

    sys.addaudithook(hook)


if os.environ.get("SEGSERVE_WITNESS") and hasattr(sys, "addaudithook"):
    _watch(os.environ["SEGSERVE_WITNESS"])

# The environment's own sitecustomize, which this one hides, runs as if nothing were there.
_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]
sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize  # noqa: F401
except ImportError:
    pass
