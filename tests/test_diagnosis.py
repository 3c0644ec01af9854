"""Every row of the table against real text: made on the spot where that is cheap, else copied from real logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segserve import diagnosis
from segserve.diagnosis import diagnose

# rule → programs whose real failure must be recognised; with words that the diagnosis must hold.
PROGRAMS = [
    ("package-not-found", "import surely_absent.deeper", "'surely_absent'"),
    ("import", "from json import nonesuch", "'json' has no 'nonesuch'"),
    ("missing-library", "import ctypes; ctypes.CDLL('libsurelyabsent.so.1')", "libsurelyabsent.so.1"),
    (
        "weights-unreachable",
        "from segserve_sdk import weights as w; w.fetch('http://127.0.0.1:9/blob.pt', '0' * 64, tries=1)",
        "'blob.pt' from http://127.0.0.1:9/blob.pt",
    ),
    (
        "weights-mismatch",
        (
            "from http.server import HTTPServer, SimpleHTTPRequestHandler as Files\nimport threading\n"
            "from segserve_sdk import weights\nserver = HTTPServer(('127.0.0.1', 0), Files)\n"
            "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
            "weights.fetch(f'http://127.0.0.1:{server.server_port}/main.py', '0' * 64, tries=1)"
        ),
        "another SHA-256",
    ),
    ("no-network", "import urllib.request as u; u.urlopen('http://127.0.0.1:9/weights.pt')", "Connection refused"),
    ("no-network", "import requests; requests.get('http://127.0.0.1:9/weights.pt')", "Max retries"),
    ("no-network", "import socket; socket.getaddrinfo('x.invalid', 80)", "gaierror"),
    ("no-images", "import numpy as np, glob; np.stack([i for i in glob.glob('absent/*.tif')])", "stack"),
    ("no-images", "max(len(x) for x in [])", "found no images"),
    ("unreadable-image", "import cv2; cv2.imread('absent.png').shape", "NoneType"),
    ("unreadable-image", "import cv2; cv2.cvtColor(cv2.imread('absent.png'), cv2.COLOR_BGR2GRAY)", "empty()"),
    ("channels", "import cv2, numpy as np; cv2.cvtColor(np.zeros((9, 9), np.uint8), cv2.COLOR_BGR2GRAY)", "channels"),
    ("shape", "import numpy as np; np.zeros((3, 4)) + np.zeros((5, 6))", "(3,4) (5,6)"),
    ("shape", "a, b, c = (10, 20)", "not enough values to unpack"),
    ("shape", "import numpy as np; np.zeros((9, 9))[0, 0, 0]", "too many indices"),
    ("out-of-memory", "import numpy as np; np.empty((10**9, 10**6))", "Unable to allocate"),
    ("numpy-alias", "import numpy as np; np.float", "no attribute 'float'"),
    ("disk-full", "open('/dev/full', 'w').write('x' * 10**5)", "No space left"),
    ("file-not-found", "open('weights/model.pt')", "weights/model.pt"),
    ("lfs-pointer", "import pickle; pickle.loads(b'version https://git-lfs')", "Git LFS"),
    ("arguments", "import argparse, sys; sys.argv = ['m', '--x']; argparse.ArgumentParser().parse_args()", "--x"),
    ("python-version", "eval('print 1')", "SyntaxError"),
    ("no-images", "raise SystemExit('No images found in inputs')", "No images found"),
    (
        "package-not-found",
        "try:\n    import surely_absent\nexcept ImportError:\n    raise RuntimeError('install it')",
        "absent",
    ),
    (
        "package-not-found",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import surely_absent'], check=True)",
        "'surely_absent'",
    ),
]


@pytest.mark.parametrize(("rule", "program", "words"), PROGRAMS)
def test_real_failures_of_python(tmp_path: Path, rule: str, program: str, words: str) -> None:
    (tmp_path / "main.py").write_text(f"def run():\n    exec({program!r})\n\n\nrun()\n")
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    found = diagnose("Loading…\n" + done.stderr, done.returncode)
    assert found is not None
    assert found.rule == rule, found
    assert words in found.cause + found.quote
    assert found.hint


SHELL = [
    ("command-not-found", "surely-absent --help", "surely-absent"),
    ("script-not-found", f"{sys.executable} gone.py", "gone.py"),
    ("out-of-memory", "bash -c 'kill -9 $$'; true & wait; exit 137", ""),
    ("crash", f"{sys.executable} -c 'import ctypes; ctypes.string_at(0)'; exit 139", ""),
    ("permission", "touch it; ./it", "Permission denied"),
]


@pytest.mark.parametrize(("rule", "line", "words"), SHELL)
def test_real_failures_of_the_shell(tmp_path: Path, rule: str, line: str, words: str) -> None:
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    found = diagnose(done.stderr, done.returncode)
    assert found is not None
    assert (found.rule, words in found.cause + found.quote) == (rule, True), found


# From real logs of public executors.
LOGS = [
    (
        "cuda-out-of-memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total …",
    ),
    ("cuda-out-of-memory", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("cuda-no-kernel", "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    (
        "cuda-no-kernel",
        "NVIDIA H100 with CUDA capability sm_90 is not compatible with the current PyTorch installation.",
    ),
    ("cuda-driver", "RuntimeError: The NVIDIA driver on your system is too old (found version 10020)."),
    ("cuda-driver", "CUDA driver version is insufficient for CUDA runtime version"),
    ("cuda-missing", "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
    (
        "cuda-missing",
        "RuntimeError: Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False",
    ),
    (
        "numpy-abi",
        "ValueError: numpy.ndarray size changed, may indicate binary incompatibility. Expected 96 from C header",
    ),
    ("numpy-abi", "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.1.0 as it may crash."),
    ("numpy-abi", "ImportError: numpy.core.multiarray failed to import"),
    (
        "mlflow-schema",
        "mlflow.exceptions.MlflowException: Detected out-of-date database schema (found version x, but expected y)",
    ),
    (
        "mlflow-connection",
        "mlflow.exceptions.MlflowException: API request to http://127.0.0.1:1/api/2.0/mlflow/runs/get failed with …",
    ),
    ("missing-library", "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"),
    (
        "missing-library",
        "python: error while loading shared libraries: libpython3.8.so.1.0: cannot open shared object file",
    ),
    ("no-network", "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file"),
    (
        "no-network",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them",
    ),
    ("download-refused", "urllib.error.HTTPError: HTTP Error 404: Not Found"),
    ("disk-full", "OSError: [Errno 122] Disk quota exceeded"),
    ("out-of-memory", "bash: line 1:  4242 Killed                  python main.py inputs"),
    ("out-of-memory", "RuntimeError: [enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory"),
    ("crash", "bash: line 1:  4242 Segmentation fault      (core dumped) python main.py"),
    (
        "channels",
        "RuntimeError: Given groups=1, expected input[1, 3, 224, 224] to have 2 channels, but got 3 channels instead",
    ),
    ("shape", "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x512 and 256x10)"),
    ("unreadable-image", "PIL.UnidentifiedImageError: cannot identify image file 'inputs/0.png'"),
    ("permission", "PermissionError: [Errno 13] Permission denied: '/models/cache'"),
    ("no-images", "ValueError: num_samples should be a positive integer value, but got num_samples=0"),
]


@pytest.mark.parametrize(("rule", "line"), LOGS)
@pytest.mark.parametrize("traceback", [False, True])
def test_lines_of_real_logs(rule: str, line: str, traceback: bool) -> None:
    head = 'Traceback (most recent call last):\n  File "main.py", line 7, in <module>\n    run()\n' if traceback else ""
    found = diagnose(f"2024/01/01 10:00:00 INFO mlflow.projects: start\n{head}{line}\n")
    assert found is not None
    assert found.rule == rule
    assert line[:100] in found.quote
    assert ("main.py:7: run()" in found.quote) == traceback


def test_every_row_is_tested() -> None:
    tested = {row[0] for row in (*PROGRAMS, *SHELL, *LOGS)}
    assert {row.rule for row in diagnosis.TABLE} == tested


def test_an_unknown_exception_is_quoted_with_the_place_in_the_executors_code(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import json\n\n\ndef run():\n    json.loads('{')\n\n\nrun()\n")
    log = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True).stderr
    found = diagnose(log)
    assert found is not None
    assert found.cause.startswith("JSONDecodeError: Expecting property name")
    assert "main.py:5: json.loads('{')" in found.quote
    assert "main.py:5)" in found.cause


def test_a_caught_error_before_the_last_one_is_no_cause() -> None:
    log = (
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in <module>\n    import gpu\n'
        "ModuleNotFoundError: No module named 'gpu'\n"
        "2024/01/01 falling back\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 9, in <module>\n    work()\n'
        "RuntimeError: the model file is empty\n"
    )
    found = diagnose(log)
    assert found is not None
    assert found.cause == "RuntimeError: the model file is empty (a.py:9)"


def test_the_launchers_own_traceback_does_not_count() -> None:
    log = (
        "bash: line 1: pyhton: command not found\n"
        "Traceback (most recent call last):\n"
        '  File "launch.py", line 1, in <module>\n    submitted.wait()\n'
        "mlflow.exceptions.ExecutionException: Run (ID '12ab') failed\n"
    )
    found = diagnose(log, 127)
    assert found is not None
    assert found.rule == "command-not-found"
    assert "'pyhton'" in found.cause


def test_the_end_of_a_log_decides_and_signals_count_without_an_exception() -> None:
    log = "warning: No CUDA GPUs are available, using the CPU\n5 images\nbash: line 1: tool: command not found\n"
    assert getattr(diagnose(log), "rule", None) == "command-not-found"
    assert getattr(diagnose("Permission denied: a warning\nhalf done\n", -9), "rule", None) == "out-of-memory"
    assert getattr(diagnose("half done\n", 127), "rule", None) == "command-not-found"


@pytest.mark.parametrize("text", ["", "\n\n", "all is well\n", "Traceback (most recent call last):\n", "x" * 5_000_000])
def test_nothing_to_say(text: str) -> None:
    assert diagnose(text) is None
