"""Why an executor failed, from the end of its log: text → cause, what to do, and the lines that say so. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Log lines can be megabytes long (progress bars); nothing that decides is.
_LONGEST_LINE = 2000
_QUOTED_LINES = 8


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`cause` completes "The executor failed: …"; `hint` says what to do next; `quote` has the deciding log lines."""

    cause: str
    hint: str
    quote: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One known cause. `cause` and `hint` may use the pattern's named groups."""

    rule: str
    pattern: re.Pattern[str]
    cause: str
    hint: str


def _row(rule: str, pattern: str, cause: str, hint: str) -> Row:
    return Row(rule, re.compile(pattern, re.MULTILINE), cause, hint)


# In an exception the first row that fits decides; in a log without one, the row that fits nearest to the end.
TABLE: Sequence[Row] = (
    _row(
        "cuda-out-of-memory",
        r"(?i)CUDA out of memory|OutOfMemoryError: CUDA|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
        r"|CUBLAS_STATUS_ALLOC_FAILED|OOM when allocating tensor",
        "the GPU ran out of memory.",
        "Try smaller images, a smaller batch or tile parameter, or a GPU with more memory.",
    ),
    _row(
        "cuda-no-kernel",
        r"(?i)no kernel image is available|is not compatible with the current PyTorch installation"
        r"|cudaErrorNoKernelImageForDevice|CUDA_ERROR_NO_BINARY_FOR_GPU",
        "its GPU library is too old for this GPU (no kernel image).",
        "Run it on the CPU (--gpus none) or an older GPU, or pin a newer torch or CUDA in the executor's environment.",
    ),
    _row(
        "cuda-driver",
        r"(?i)NVIDIA driver on your system is too old|driver version is insufficient|CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
        r"|forward compatibility was attempted on non supported HW",
        "the NVIDIA driver of this machine is too old for its CUDA version.",
        "Ask whoever runs the machine for a newer driver, or run on the CPU: --gpus none.",
    ),
    _row(
        "cuda-missing",
        r"(?i)Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device|Torch not compiled with CUDA"
        r"|Attempting to deserialize object on a CUDA device",
        "it needs a GPU that it can use, and there is none.",
        "Lease one (--gpus 1), or ask the author for a way to run on the CPU.",
    ),
    _row(
        "numpy-abi",
        r"numpy\.(ndarray|dtype) size changed|compiled using NumPy 1\.x cannot be run in"
        r"|numpy\.core\.multiarray failed to import|compiled against (ABI|API) version",
        "a package was compiled for another version of numpy.",
        "Pin numpy in the executor's environment (often numpy<2) and let its packages be built for it.",
    ),
    _row(
        "numpy-alias",
        r"module 'numpy' has no attribute '(?P<name>\w+)'|`np\.(?P<alias>\w+)` was removed",
        "it uses a part of numpy that newer versions no longer have.",
        "Pin an older numpy in the executor's environment (numpy<1.24, or numpy<2).",
    ),
    _row(
        "mlflow-schema",
        r"Detected out-of-date database schema|Can't locate revision identified by",
        "its mlflow cannot read the database of the tracking store.",
        "Give it an HTTP tracking server: unset MLFLOW_TRACKING_URI, or point it to http(s)://…",
    ),
    _row(
        "mlflow-connection",
        r"API request to \S+ failed"
        r"|mlflow\.exceptions\.MlflowException: (API request|.*Connection)",
        "it could not reach the MLflow tracking server.",
        "See `segserve doctor`; a server of your own must be reachable from where the executor runs.",
    ),
    _row(
        "missing-library",
        r"ImportError: (?P<name>[\w.+-]+\.so[\w.]*): cannot open shared object|error while loading shared libraries: "
        r"(?P<other>[\w.+-]+):|OSError: (?P<third>[\w.+/-]+\.so[\w.]*): cannot open shared object",
        "the system library {name} is missing.",
        "Add a package that brings it to the executor's environment (for libGL: use opencv-python-headless).",
    ),
    _row(
        "package-not-found",
        r"(ModuleNotFoundError|ImportError): No module named '?(?P<name>[\w.]+)'?",
        "the package '{name}' is not in its environment.",
        "Add it to the executor's environment file (the name to install may differ from the name to import).",
    ),
    _row(
        "import",
        r"ImportError: cannot import name '(?P<name>\w+)' from '?(?P<other>[\w.]+)'?",
        "'{other}' has no '{name}': another version of it is installed than the code was written for.",
        "Pin the version of that package in the executor's environment file.",
    ),
    _row(
        "weights-unreachable",
        r"WeightsError: could not download the weights '(?P<name>[^'\n]+)' from (?P<address>\S+): ",
        "it could not download the weights '{name}' from {address}",
        "Check network and proxy (`segserve doctor`), or put the file where the last line of the quote says.",
    ),
    _row(
        "weights-mismatch",
        r"WeightsError: the weights '(?P<name>[^'\n]+)' from (?P<address>\S+) are not what was expected",
        "the weights '{name}' at {address} are not the ones that it was written for (another SHA-256).",
        "The author has to say which are right. If a proxy answers with a page of its own, segserve doctor shows it.",
    ),
    _row(
        "no-network",
        r"(?i)urllib\.error\.URLError|urlopen error|NameResolutionError|Name or service not known|gaierror"
        r"|Temporary failure in name resolution|Failed to resolve|Network is unreachable|LocalEntryNotFoundError"
        r"|requests\.exceptions\.(ConnectionError|ConnectTimeout|SSLError|ProxyError)|CERTIFICATE_VERIFY_FAILED"
        r"|OfflineModeIsEnabled|Max retries exceeded with url|couldn't connect to '?https?:|Could not resolve host",
        "it could not download something (weights?): the network did not answer.",
        "Check network and proxy (`segserve doctor`), or put the file where the executor looks for it: it is told of "
        "a cache in CACHE_FOLDER.",
    ),
    _row(
        "download-refused",
        r"HTTPError: HTTP Error \d+|[45]\d\d (Client|Server) Error|GatedRepoError|RepositoryNotFoundError",
        "a download was refused (weights?).",
        "Check that the address still exists and whether it needs a login.",
    ),
    _row(
        "disk-full",
        r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]",
        "the disk is full.",
        "Free space (`segserve env gc` removes unused environments), or set SEGSERVE_HOME to a larger disk.",
    ),
    _row(
        "out-of-memory",
        r"(^|\s)MemoryError|Unable to allocate [\d.]+ .iB|DefaultCPUAllocator: (can't|not enough)|std::bad_alloc"
        r"|Cannot allocate memory|[Oo]ut of memory: Killed process|^(.*: line \d+: +\d+ )?Killed\b|SIGKILL"
        r"|exit(ed with)? (code|status)? ?(-9|137)\b",
        "it ran out of memory, or something killed it.",
        "Try fewer or smaller images (--first, --frames), or a machine with more memory.",
    ),
    _row(
        "crash",
        r"Segmentation fault|SIGSEGV|SIGILL|Illegal instruction|core dumped|exit(ed with)? (code|status)? ?-(11|4|6)\b",
        "a compiled library in it crashed.",
        "Often two packages in its environment do not fit each other: pin them; or the processor lacks an instruction.",
    ),
    _row(
        "no-images",
        r"(?i)no (input )?(images?|files|data) (were |was )?(found|given|to process)"
        r"|found (no|0|zero) (images?|files)\b"
        r"|need at least one array to (concatenate|stack)|(max|min)\(\) (arg is an empty sequence|iterable argument is)"
        r"|num_samples should be a positive integer value, but got num_samples=0",
        "it found no images.",
        "segserve stages PNG files: the executor must look for *.png in the folder that it is given.",
    ),
    _row(
        "unreadable-image",
        r"(?i)cannot identify image file|PIL\.UnidentifiedImageError|libpng error|not a TIFF file"
        r"|!_src\.empty\(\) in function|'NoneType' object has no attribute 'shape'",
        "it could not read an image.",
        "segserve stages PNG files, 8 or 16 bit: try --depth 8 if the executor expects 8 bit.",
    ),
    _row(
        "channels",
        r"(?i)expected input\S* to have (?P<want>\d+) channels|(?P<a>\d+) channels,? but got|Invalid number of channels"
        r"|scn is (\d)|VScn::contains\(scn\)|number of (input )?channels|channel_axis",
        "the images have another number of channels than it expects.",
        "Choose a channel (--channel), or give it images of the kind that it was made for.",
    ),
    _row(
        "shape",
        r"could not broadcast input array|operands could not be broadcast|shapes? .*(mismatch|not aligned|do not match)"
        r"|mat1 and mat2 shapes|size of tensor a .* must match|too many values to unpack|not enough values to unpack"
        r"|too many indices for array|axes don't match array|Sizes of tensors must match",
        "the images have a shape that it did not expect.",
        "Grey or colour, size, or a stack: choose by --channel, --z, --frames, or crop to the size it was made for.",
    ),
    _row(
        "command-not-found",
        r"(bash|sh|dash|zsh)(: line \d+)?:( \d+:)? (?P<name>[^\s:]+): (command )?not found"
        r"|env: ['‘]?(?P<other>[^'’:]+)['’]?: No such file",
        "its command uses the program '{name}', which is not there.",
        "Add it to the executor's environment file, or correct the command in its MLProject.",
    ),
    _row(
        "script-not-found",
        r"can't open file '(?P<name>[^']+)'",
        "its command runs '{name}', which is not in the repository.",
        "Correct the command in its MLProject; a submodule needs --submodules.",
    ),
    _row(
        "lfs-pointer",
        r"invalid load key, 'v'|version https://git-lfs\.github\.com/spec",
        "a file in its repository is only a Git LFS pointer.",
        "The weights are kept in Git LFS, which is not fetched: the author should offer them for download.",
    ),
    _row(
        "file-not-found",
        r"FileNotFoundError|NotADirectoryError|No such file or directory",
        "a file that it needs is not there.",
        "If it is a weight file, the executor must bring or download it; paths are relative to the project's folder.",
    ),
    _row(
        "permission",
        r"PermissionError|Permission denied|Read-only file system",
        "it may not read or write a file.",
        "An executor writes into its working directory and CACHE_FOLDER only; a script must be executable (chmod +x).",
    ),
    _row(
        "arguments",
        r"error: (unrecognized arguments|the following arguments are required|argument \S+: |ambiguous option)",
        "its program does not understand the arguments of its own command.",
        "Correct the command in its MLProject, or the program's arguments.",
    ),
    _row(
        "python-version",
        r"SyntaxError|IndentationError",
        "its code is no valid Python for the version that runs it.",
        "Pin the Python version in the executor's environment file, or try --python X.Y.",
    ),
)

_TRACEBACK = re.compile(r"^\s*(\+ )?Traceback \(most recent call last\)|^  \+ Exception Group Traceback")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)(, in (?P<function>.+))?$')
_CHAINED = re.compile(r"During handling of the above exception|The above exception was the direct cause")
_EXCEPTION = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(: (?P<message>.*))?$")
# The launcher's own end: MLflow says that the run failed, which is known.
_LAUNCHER = re.compile(r"^mlflow\.exceptions\.ExecutionException: Run \(ID|^.*mlflow\.projects.*=== Run \(ID")
_FOREIGN = re.compile(r"site-packages|dist-packages|/lib(64)?/python[\d.]+/|^<|^/usr/")


def diagnose(text: str, exit_code: int | None = None) -> Diagnosis | None:
    """The cause of a failure from the end of a log and the exit code (negative: signal), or None if it is not known.

    The last exception, with those it was raised from, decides over anything before it: a `ModuleNotFoundError` that
    was caught is no cause.
    """
    lines = [line[:_LONGEST_LINE].rstrip() for line in re.split(r"\r\n|\n|\r", text)]
    lines = [line for line in lines if line]
    tracebacks = _tracebacks(lines)
    if not tracebacks:
        return _by_signal(exit_code, lines) or _match_last(lines) or _by_exit_code(exit_code, lines)
    last = tracebacks[-1]
    if len(tracebacks) > 1 and "CalledProcessError" in last.exception_lines[0]:
        last = tracebacks[-2]  # of the command that failed
    for link in _chain(tracebacks, last):
        found = _match(link.exception_lines, link)
        if found:
            return found
    return _match(lines[tracebacks[-1].end :], None) or _exception(last)


@dataclass(frozen=True)
class _Traceback:
    """Lines of a traceback: its frames, and what stands from the exception's name on."""

    frames: Sequence[tuple[str, str]]  # (file:line, code)
    exception_lines: Sequence[str]
    end: int
    chained: bool  # raised while the one before was handled


def _tracebacks(lines: Sequence[str]) -> list[_Traceback]:
    found = []
    for start in (number for number, line in enumerate(lines) if _TRACEBACK.match(line)):
        frames, number = [], start + 1
        while number < len(lines) and (lines[number].startswith((" ", "\t")) or _TRACEBACK.match(lines[number])):
            frame = _FRAME.match(lines[number])
            if frame:
                code = lines[number + 1].strip() if number + 1 < len(lines) else ""
                frames.append((f"{frame['file']}:{frame['line']}", code))
            number += 1
        end = min(len(lines), number + 1)
        while end < len(lines) and end < number + 12 and _continues(lines[end]):
            end += 1
        if number < len(lines) and not _LAUNCHER.match(lines[number]):
            chained = start > 0 and _CHAINED.match(lines[start - 1]) is not None
            found.append(_Traceback(frames, lines[number:end], end, chained))
    return found


def _chain(tracebacks: Sequence[_Traceback], last: _Traceback) -> Iterator[_Traceback]:
    """A traceback and those that it was raised from, from the last to the first."""
    for traceback in reversed(tracebacks[: tracebacks.index(last) + 1]):
        yield traceback
        if not traceback.chained:
            return


def _continues(line: str) -> bool:
    """Whether a line may belong to the message of an exception above it: it is not the head of something else."""
    return not (
        _TRACEBACK.match(line)
        or _CHAINED.match(line)
        or re.match(r"\d{4}[-/]\d\d|\[?(INFO|WARN|ERR|DEBUG)|🏃 View run|🧪 View experiment", line)  # MLflow says these
    )


def _match(lines: Sequence[str], traceback: _Traceback | None) -> Diagnosis | None:
    """The first row that fits."""
    text = "\n".join(lines)
    for row in TABLE:
        match = row.pattern.search(text)
        if match:
            return _diagnosis(row, match, text, traceback)
    return None


def _match_last(lines: Sequence[str]) -> Diagnosis | None:
    """The row that fits nearest to the end."""
    for line in reversed(lines):
        found = _match([line], None)
        if found:
            return found
    return None


def _diagnosis(row: Row, match: re.Match[str], text: str, traceback: _Traceback | None) -> Diagnosis:
    groups = {name: value for name, value in match.groupdict().items() if value}
    names = _Blank({"name": next(iter(groups.values()), "?"), **groups})
    return Diagnosis(row.cause.format_map(names), row.hint, _quote(text, match, traceback), row.rule)


class _Blank(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _quote(text: str, match: re.Match[str], traceback: _Traceback | None) -> str:
    """The whole lines of a match, behind the place in the executor's code where there is one."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    decisive = text[start : end if end >= 0 else None].splitlines()[:_QUOTED_LINES]
    if traceback and decisive[0] in traceback.exception_lines:
        place = _place(traceback)
        if place and not any(place in line for line in decisive):
            decisive.insert(0, place)
    return "\n".join(line[:400] for line in decisive)


def _place(traceback: _Traceback) -> str:
    """`file:line: code` of the innermost frame in the executor's own code, else of the innermost one."""
    own = [frame for frame in traceback.frames if not _FOREIGN.search(frame[0])] or list(traceback.frames)
    if not own:
        return ""
    where, code = own[-1]
    return f"{where}: {code}" if code and not _FRAME.match(code) else where


def _exception(traceback: _Traceback) -> Diagnosis:
    """An exception that no row knows: its own words."""
    lines = list(traceback.exception_lines)[:_QUOTED_LINES]
    match = _EXCEPTION.match(lines[0])
    name, message = (match["type"].rpartition(".")[2], match["message"] or "") if match else ("", lines[0])
    said = f"{name}: {message}" if name and message else name or message
    where = _place(traceback)
    at = f" ({'/'.join(where.split(': ')[0].split('/')[-2:])})" if where else ""
    quote = "\n".join([*([where] if where else []), *(line[:400] for line in lines)])
    return Diagnosis(f"{said[:300]}{at}", "The error comes from the executor's own code.", quote, "exception")


def _by_signal(code: int | None, lines: Sequence[str]) -> Diagnosis | None:
    """Without an exception a deadly signal says more than any line."""
    rules = {-9: "out-of-memory", 137: "out-of-memory", -11: "crash", 139: "crash", -4: "crash", 132: "crash"}
    return _row_diagnosis(rules.get(code, ""), lines) if code is not None else None


def _by_exit_code(code: int | None, lines: Sequence[str]) -> Diagnosis | None:
    rules = {127: "command-not-found", 126: "permission"}
    return _row_diagnosis(rules.get(code, ""), lines) if code is not None else None


def _row_diagnosis(rule: str, lines: Sequence[str]) -> Diagnosis | None:
    row = next((row for row in TABLE if row.rule == rule), None)
    if row is None:
        return None
    cause = row.cause.replace("the program '{name}', which", "a program that")
    return Diagnosis(cause, row.hint, "\n".join(line[:400] for line in lines[-3:]), rule)
