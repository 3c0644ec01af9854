"""What probes can find."""

from __future__ import annotations

from segserve.findings import Rule, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

BUILD_FAILED = Rule(
    "build-failed", _E, "The environment cannot be built.", "Correct the environment's file as the quoted lines say."
)
PROBE_FAILED = Rule(
    "probe-failed", _E, "The executor fails on a plain image.", "Run it by `segserve run` and read the log."
)
OUTPUT_MISSING = Rule(
    "output-missing",
    _E,
    "The executor leaves no output.json.",
    'Write it and log it: mlflow.log_artifact("output.json").',
)
OUTPUT_INVALID = Rule(
    "output-invalid", _E, "The executor's output.json is not what format 0.2 allows.", "See docs/format.md."
)
WRONG_NUMBER = Rule(
    "wrong-number-of-results",
    _E,
    "There is not one result per image.",
    "Write one list per image, also for images without objects.",
)
ODD_OBJECTS = Rule(
    "odd-objects",
    _W,
    "Single objects of the result are not what the format asks for; a run forgives them.",
    "See docs/format.md; segserve_sdk.contours writes sound polygons.",
)
ORDER = Rule(
    "order-not-kept",
    _E,
    "Results stand in another order than the images.",
    "Write sorted(glob(…)), and one result per image in that order.",
)
NOTHING = Rule(
    "finds-nothing",
    _N,
    "The executor finds no object on plain bright discs; order and orientation cannot be told.",
    "Nothing, if it is made for something else.",
)
INFO = Rule(
    "info-invalid",
    _W,
    "The entry point `info` does not answer with name, git_url, git_hash and type.",
    'Write {"name": …, "git_url": …, "git_hash": …, "type": "info"} to output.json and log it.',
)
OUTSIDE = Rule(
    "writes-outside",
    _W,
    "The executor writes outside of its job: such files stay for ever, and concurrent jobs share them.",
    "Write to the working directory, to a temporary folder, or (downloads) to $CACHE_FOLDER.",
)
CLAIM = Rule(
    "claim-broken",
    _E,
    "The executor does what its segserve.toml says that it does not.",
    "Correct the claim under [run], or the executor.",
)
SECRET = Rule(
    "secret-printed",
    _E,
    "The executor prints environment variables or secrets to its log.",
    "Do not print os.environ; print single values that you need.",
)
BLANK = Rule(
    "blank-image", _W, "On an image without anything the executor fails, or finds something.", "Handle empty images."
)
UPSIDE_DOWN = Rule(
    "upside-down",
    _W,
    "An image turned upside down gives another result than the same image upright.",
    "Nothing, if the method is made so; else look for a shift of half a pixel, or for tiles.",
)
REPEAT = Rule(
    "repeat-drift",
    _W,
    "The same images give another result the second time.",
    "Seed random generators, or say deterministic = false under [run] in segserve.toml.",
)
GROWTH = Rule(
    "memory-growth",
    _W,
    "Memory grows with the number of images: a large set will end in `killed`.",
    "Read one image at a time, and keep polygons instead of masks.",
)
SKIPPED = Rule("probe-skipped", _N, "A probe was not run.", "Give it more time: --budget SECONDS.")

RULES = (
    *(BUILD_FAILED, PROBE_FAILED, OUTPUT_MISSING, OUTPUT_INVALID, WRONG_NUMBER, ODD_OBJECTS, ORDER, NOTHING, INFO),
    *(OUTSIDE, CLAIM, SECRET, BLANK, UPSIDE_DOWN, REPEAT, GROWTH, SKIPPED),
)
