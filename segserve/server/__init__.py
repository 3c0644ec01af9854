"""HTTP: parse, call, render. Everything that takes time is done by the scheduler's workers or in a thread.

`app` (the application) · `access` (who calls, and what they may) · `door` (who that is) · `guard` (before all routes) ·
`login` (sessions of browsers) · `problems` (its errors) · `jobs` (`/jobs`) · `events` (server-sent
events) · `uploads` (bodies streamed to disk) · `health` (`/livez`, `/readyz`, `/info`, `/status`, `/metrics`) ·
`mlflow` (MLflow's pages behind our door) · `compatibility` (what SegUI and acia send) · `desk` (what all of them ask of
journal and queue) · `run` (uvicorn, and the scheduler beside it).
"""
