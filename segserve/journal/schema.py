"""The tables of the journal, by version."""

from __future__ import annotations

# Statements per version; a journal at version n has had the first n. Never change one that was released: append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE jobs (
            id       TEXT PRIMARY KEY,
            job      TEXT NOT NULL,               -- model.Job as JSON, never changes
            state    TEXT NOT NULL,
            fence    INTEGER NOT NULL DEFAULT 0,
            created  REAL NOT NULL,               -- seconds since the epoch
            updated  REAL NOT NULL,
            error    TEXT,                        -- JSON object: code, message, hint, quote
            run_id   TEXT NOT NULL DEFAULT '',    -- of the MLflow run
            run_url  TEXT NOT NULL DEFAULT '',
            result   TEXT NOT NULL DEFAULT '',    -- folder of the published result
            warnings TEXT NOT NULL DEFAULT '[]'   -- JSON array of texts
        )
        """,
        "CREATE INDEX jobs_by_age ON jobs (created)",
        "CREATE INDEX jobs_by_state ON jobs (state, created)",
        """
        CREATE TABLE attempts (
            job_id   TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            number   INTEGER NOT NULL,
            fence    INTEGER NOT NULL,            -- the job's when the attempt began
            host     TEXT NOT NULL,
            slot     TEXT NOT NULL DEFAULT '',
            state    TEXT NOT NULL,
            error    TEXT NOT NULL DEFAULT '',    -- code of the error that ended it
            attached INTEGER NOT NULL,
            started  REAL NOT NULL,
            ended    REAL,
            PRIMARY KEY (job_id, number)
        ) WITHOUT ROWID
        """,
    ),
    (
        # The queue. `job` is '' until a driver has prepared what `request` asks for.
        "ALTER TABLE jobs ADD COLUMN request TEXT NOT NULL DEFAULT ''",  # JSON of the pipeline; '': of a command
        "ALTER TABLE jobs ADD COLUMN user TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN lane TEXT NOT NULL DEFAULT ''",  # kind of slot that it needs: cpu, gpu
        "ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",  # higher goes first
        "ALTER TABLE jobs ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0",  # number of the latest
        "ALTER TABLE jobs ADD COLUMN tries INTEGER NOT NULL DEFAULT 0",  # how often it was begun
        "ALTER TABLE jobs ADD COLUMN most_tries INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE jobs ADD COLUMN not_before REAL NOT NULL DEFAULT 0",  # 0: at once
        "ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT ''",  # the worker process; '': a command, or nobody
        "ALTER TABLE jobs ADD COLUMN lease_until REAL NOT NULL DEFAULT 0",  # 0: a command; its lock file decides
        "ALTER TABLE jobs ADD COLUMN cancel REAL NOT NULL DEFAULT 0",  # when somebody wanted it to end
        "ALTER TABLE jobs ADD COLUMN digest TEXT NOT NULL DEFAULT ''",  # of all that decides the result
        # 1: a client waits for the result (a SegServe route) and has not had it: the same request again is this one.
        "ALTER TABLE jobs ADD COLUMN awaited INTEGER NOT NULL DEFAULT 0",
        # Before this version every job had one attempt folder, a row for it only when it had been started.
        "UPDATE jobs SET attempt = 1, tries = 1",
        (
            "CREATE INDEX jobs_ready ON jobs (lane, priority, user, created, id)"
            " WHERE state = 'queued' AND lane <> '' AND not_before = 0"
        ),
        "CREATE INDEX jobs_delayed ON jobs (not_before) WHERE state = 'queued' AND not_before > 0",
        "CREATE INDEX jobs_never_queued ON jobs (created) WHERE state = 'queued' AND lane = ''",
        (
            "CREATE INDEX jobs_driven ON jobs (user, lane)"
            " WHERE state IN ('preparing', 'waiting', 'running', 'collecting')"
        ),
        (
            "CREATE INDEX jobs_joinable ON jobs (user, digest)"
            " WHERE digest <> '' AND state IN ('queued', 'preparing', 'waiting', 'running', 'collecting')"
        ),
        "CREATE INDEX jobs_awaited ON jobs (user, digest) WHERE awaited = 1",
        "CREATE INDEX jobs_of_user ON jobs (user, created)",
        "CREATE TABLE users (name TEXT PRIMARY KEY, served REAL NOT NULL) WITHOUT ROWID",  # when a job began last
        """
        CREATE TABLE idempotency_keys (
            user    TEXT NOT NULL,
            key     TEXT NOT NULL,
            digest  TEXT NOT NULL,                -- of the request that came with it
            job_id  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            PRIMARY KEY (user, key)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX idempotency_keys_of_job ON idempotency_keys (job_id)",
    ),
    (
        # Quotas.
        (
            "CREATE INDEX jobs_open_of_user ON jobs (user)"
            " WHERE state IN ('queued', 'preparing', 'waiting', 'running', 'collecting')"
        ),
        """
        CREATE TABLE uploads (
            user    TEXT NOT NULL,
            hour    INTEGER NOT NULL,             -- since the epoch
            bytes   INTEGER NOT NULL,
            PRIMARY KEY (user, hour)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX uploads_by_hour ON uploads (hour)",
    ),
    (
        # How often jobs have gone from one state to another, and how long they had been in the first: for graphs, and
        # kept when the jobs themselves are taken away. A trigger, so that no way to change a state is forgotten.
        "ALTER TABLE jobs ADD COLUMN since REAL NOT NULL DEFAULT 0",  # when it came into its state; 0: at `created`
        """
        CREATE TABLE passages (
            old     TEXT NOT NULL,
            new     TEXT NOT NULL,
            times   INTEGER NOT NULL,
            seconds REAL NOT NULL,
            PRIMARY KEY (old, new)
        ) WITHOUT ROWID
        """,
        """
        CREATE TRIGGER jobs_passed AFTER UPDATE OF state ON jobs WHEN old.state <> new.state
        BEGIN
            INSERT INTO passages (old, new, times, seconds) VALUES (
                old.state, new.state, 1,
                max(0.0, new.updated - CASE WHEN old.since > 0 THEN old.since ELSE old.created END)
            )
            ON CONFLICT (old, new) DO UPDATE SET times = times + 1, seconds = seconds + excluded.seconds;
            UPDATE jobs SET since = new.updated WHERE id = new.id;
        END
        """,
    ),
)
VERSION = len(MIGRATIONS)
