"""What the code does with images and results, as far as reading it tells. Only files that an entry point reaches."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from segserve.check.code import Module, Reached, reach
from segserve.check.repository import Repository
from segserve.findings import Finding, Place, Rule, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

SYNTAX = Rule("python-syntax", _E, "A script that an entry point runs is no valid Python 3.", "Correct the line.")
NO_OUTPUT = Rule(
    "output-never-written",
    _E,
    "Nothing that the entry points run mentions output.json, so there will be no result.",
    "Write output.json in format 0.2 (docs/format.md) and log it.",
)
NOT_LOGGED = Rule(
    "output-not-logged",
    _W,
    "output.json is written, but nothing logs it to MLflow.",
    'Add mlflow.log_artifact("output.json").',
)
OLD_FORMAT = Rule(
    "old-format", _W, "The result is written in a format older than 0.2.", 'Write "format_version": "0.2".'
)
GLOB_MISSES = Rule(
    "glob-misses-images",
    _E,
    "The images are looked for by a pattern that no staged image has: segserve hands over PNG files.",
    'Look for "*.png".',
)
UNSORTED = Rule(
    "unsorted-images",
    _W,
    "Files are taken in the order in which the disk lists them, so results may belong to the wrong image.",
    "Write sorted(glob(…)).",
)
HARD_PATH = Rule(
    "hard-coded-path",
    _W,
    "A path of somebody's own machine stands in the code or the command.",
    "Make it a parameter, or a path relative to the script.",
)
HOLES = Rule(
    "holes-as-objects",
    _W,
    "cv2.RETR_TREE, RETR_CCOMP and RETR_LIST also return holes, which become objects in the result.",
    "Use cv2.RETR_EXTERNAL, or segserve_sdk.contours, which keeps holes.",
)
SQUEEZE = Rule(
    "squeezed-contour",
    _W,
    "np.squeeze without an axis turns a contour of one point into [x, y], which is no polygon.",
    "Write contour[:, 0], or np.squeeze(contour, axis=1).",
)
GPU_ONLY = Rule(
    "needs-gpu",
    _N,
    "The code asks for CUDA without looking whether there is a GPU.",
    'Write "cuda" if torch.cuda.is_available() else "cpu".',
)
RULES = (SYNTAX, NO_OUTPUT, NOT_LOGGED, OLD_FORMAT, GLOB_MISSES, UNSORTED, HARD_PATH, HOLES, SQUEEZE, GPU_ONLY)

# The kit's runner writes and logs by itself.
_RUNNER = r"from segserve_sdk(?:\.\w+)? import [^\n]*\b(?:Runner|Tracker|Classifier)\b|"
_WRITES = re.compile(_RUNNER + r"output\.json|\bwrite_output\(")
_LOGS = re.compile(_RUNNER + r"log_artifacts?\b|log-artifact|log_dict|log_text")
_OTHER_IMAGES = re.compile(r"\*\.?\*?(?:tiff?|jpe?g|bmp|npy|czi|nd2|lif|dcm|nii(?:\.gz)?)$", re.I)
_PATTERN = re.compile(r"[^\n]*\*[^\n]*")
_WITH_HOLES = frozenset({"RETR_TREE", "RETR_CCOMP", "RETR_LIST"})
_MAKES_RESULTS = re.compile(r"contour_coordinates|output\.json|\bwrite_output\(")  # others may want the holes, to draw
_LISTING = frozenset({"glob", "iglob", "rglob", "listdir", "scandir", "iterdir"})
_ORDERING = frozenset({"sorted", "natsorted", "sort_files", "len", "set", "any", "all", "max", "min", "rmtree"})
_READS_IMAGES = re.compile(r"png|imread|Image\.open|images?\b")
_OWN_PATH = re.compile(
    r"(?:/home/|/Users/|/mnt/|/media/|/scratch/|/nfs/|/gpfs/|/data/|/content/drive/)\w|[A-Za-z]:\\+\w"
)
# One of these is in every file that a rule below can find something in; a look at the syntax tree costs milliseconds.
_WORTH_A_LOOK = re.compile(
    r"glob|listdir|scandir|iterdir|RETR_|squeeze|cuda|format_version|\*\.|:\\|"
    r"/(?:home|Users|mnt|media|scratch|nfs|gpfs|data|content)/"
)
_LOOKS_FOR_GPU = re.compile(r"is_available|device_count|list_physical_devices|\"cpu\"|'cpu'")


def find(repository: Repository) -> Iterator[Finding]:
    """Everything about the code; nothing when MLProject cannot be read."""
    if repository.project is None:
        return
    reached = reach(repository)
    yield from _output(repository, reached)
    for entry in repository.project.entry_points.values():
        found = _OWN_PATH.search(entry.command)
        if found:
            place = repository.find(repository.project_file, found.group(), behind=f"{entry.name}:")
            yield HARD_PATH.at(f"The command of '{entry.name}' names {found.group()}….", place)
    for module in reached.modules:
        if module.error is not None:
            place = Place(module.path, module.error.lineno, module.error.offset)
            yield SYNTAX.at(f"Python cannot read it: {module.error.msg}.", place)
        elif module.tree is not None and _WORTH_A_LOOK.search(module.text):
            yield from _module(module)


def _output(repository: Repository, reached: Reached) -> Iterator[Finding]:
    project = repository.project
    if project is None or not any(entry.images_parameter for entry in project.entry_points.values()):
        return
    if any(module.tree is None for module in reached.modules):
        return
    if reached.complete:
        texts = [module.text for module in reached.modules] + [repository.text(path) for path in reached.shell]
    else:  # what the command runs is not seen: then the whole repository is asked
        texts = [text for path, text in repository.texts() if not path.endswith((".md", ".rst"))]
    texts += [entry.command for entry in project.entry_points.values()]
    place = Place(repository.project_file, 1, 1)
    if not any(_WRITES.search(text) for text in texts):
        yield NO_OUTPUT.at("No file that the entry points run mentions output.json.", place)
    elif not any(_LOGS.search(text) for text in texts):
        yield NOT_LOGGED.at("No file that the entry points run calls mlflow.log_artifact.", place)


def _module(module: Module) -> Iterator[Finding]:
    assert module.tree is not None  # the caller has looked
    documentation = _docstrings(module.tree)
    parents = {child: node for node in ast.walk(module.tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield from _text(module, node, node.value, parents)
        elif isinstance(node, ast.Call):
            yield from _call(module, node, parents)
        elif isinstance(node, ast.Attribute) and node.attr in _WITH_HOLES and _MAKES_RESULTS.search(module.text):
            yield HOLES.at(f"cv2.{node.attr} also returns holes.", module.place(node))
        elif isinstance(node, ast.Dict):
            yield from _version(module, node)


def _text(module: Module, node: ast.Constant, text: str, parents: dict[ast.AST, ast.AST]) -> Iterator[Finding]:
    if _OTHER_IMAGES.search(text) and _PATTERN.fullmatch(text) and not re.search(r"\*\.?(png|\*|p)", module.text):
        yield GLOB_MISSES.at(f"'{text}' matches no PNG file.", module.place(node))
    if _OWN_PATH.match(text):
        yield HARD_PATH.at(f"'{text[:60]}' is a path of one machine.", module.place(node))
    cuda = text == "cuda" or re.fullmatch(r"cuda:\d", text)
    if cuda and not _LOOKS_FOR_GPU.search(module.text) and isinstance(parents.get(node), (ast.Call, ast.Assign)):
        yield GPU_ONLY.at(f"'{text}' is asked for in any case.", module.place(node))


def _call(module: Module, node: ast.Call, parents: dict[ast.AST, ast.AST]) -> Iterator[Finding]:
    name = _name(node.func)
    if (
        name in _LISTING
        and _READS_IMAGES.search(module.text)
        and _is_of_files(node)
        and not _is_ordered(node, parents, module)
    ):
        yield UNSORTED.at(f"The files of {name}() come in any order.", module.place(node))
    bare = not node.keywords and len(node.args) < 2
    if name == "squeeze" and bare and "findContours" in module.text:
        yield SQUEEZE.at("squeeze() without an axis.", module.place(node))
    if name == "cuda" and isinstance(node.func, ast.Attribute) and not _LOOKS_FOR_GPU.search(module.text):
        yield GPU_ONLY.at(".cuda() is called in any case.", module.place(node))


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_of_files(node: ast.Call) -> bool:
    """Whether a listing is of images: a pattern says so, or there is none."""
    texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    patterns = [text for text in texts if "*" in text]
    return not patterns or any(re.search(r"png|\*$", text, re.I) for text in patterns)


def _is_ordered(node: ast.AST, parents: dict[ast.AST, ast.AST], module: Module) -> bool:
    """Whether the listing goes through something that orders or only counts, here or by its variable's name."""
    while node in parents and isinstance(parents[node], ast.expr | ast.comprehension | ast.Starred | ast.keyword):
        node = parents[node]
        if isinstance(node, ast.Call) and _name(node.func) in _ORDERING:
            return True
    above = parents.get(node)
    targets = above.targets if isinstance(above, ast.Assign) else []
    for target in targets:
        word = re.escape(target.id) if isinstance(target, ast.Name) else r"\w+"
        if re.search(rf"\b{word}\.sort\(|(?:nat)?sorted\([^)\n]*\b{word}\b", module.text):
            return True
    return False


def _version(module: Module, node: ast.Dict) -> Iterator[Finding]:
    for key, value in zip(node.keys, node.values, strict=True):
        named = isinstance(key, ast.Constant) and key.value == "format_version"
        if named and isinstance(value, ast.Constant) and str(value.value) != "0.2":
            yield OLD_FORMAT.at(f"format_version is {value.value!r}.", module.place(value))


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    """Texts that are no values: they may say anything."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
