"""The supervisor of one attempt: `python -m segserve.launch ATTEMPT_DIR --control-fd N`. Nobody imports it.

1. The parent starts it early; it becomes the leader of a session and the subreaper of all it will start, puts a
   redacting pipe in the place of stdout and stderr (`log`), and imports mlflow.projects while the parent prepares.
2. It waits on the control socket. `go` comes with the descriptors of the GPU lease; the end of the connection instead
   means that nothing will come: it exits silently.
3. It reads attempt.json, opens the gate to MLflow (`segserve.gate`), takes on the attempt's variables, runs the project
   through mlflow in a thread (`executor`).
4. It watches: time limit, SIGTERM, and, if the attempt is attached, the end of the connection. It writes heartbeats.
5. It ends everything that still lives of the attempt, whichever way that ended, containers included.
6. Its last act is outcome.json. It never opens the journal, and the GPU lease ends with it.
"""
