"""The program that MLflow takes for bash.

MLflow starts an entry point by `bash -c …` and has no hook for it. So `bash` is a script that first goes where the
executor has to be, and then runs the same words, with PATH as it was.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

# Nothing runs outside of its limits.
_LEAVE = "{ echo '[segserve] The executor could not enter its control group.' >&2; exit 125; }"


def take_over(folder: Path, *, prefix: Sequence[str] = (), doors: Sequence[Path] = (), file_bytes: int = 0) -> None:
    """Put the script into `folder`, and that in front of this process's PATH.

    It enters the control groups behind `doors`, bounds the size of any one file (0: no limit), and becomes `prefix`
    with bash behind it.
    """
    path = os.environ.get("PATH", os.defpath)
    bash = shutil.which("bash", path=path) or "/bin/bash"
    words = " ".join(shlex.quote(word) for word in [*prefix, bash])
    lines = ["#!/bin/sh", f"export PATH={shlex.quote(path)}"]
    lines += [f"echo 0 >{shlex.quote(str(door))} || {_LEAVE}" for door in doors]
    if file_bytes:
        lines.append(f"ulimit -f {max(1, file_bytes // 512)}")  # blocks of 512 bytes (POSIX)
    folder.mkdir(mode=0o700, exist_ok=True)
    script = folder / "bash"
    script.write_text("\n".join([*lines, f'exec {words} "$@"', ""]), encoding="utf-8")
    script.chmod(0o700)
    os.environ["PATH"] = os.pathsep.join([str(folder), path])
