"""Where a placeholder stands in a shell command, and whether a value can break out there.

MLflow fills `{name}` by `str.format` with `shlex.quote(value)` and gives the text to `bash -c`. The quoted value is one
harmless word only where the shell reads a fresh word. Everywhere else its own quotes close or lose their meaning:

    python main.py {x}            safe            "$(basename {x})"     safe: a command of its own
    python main.py "{x}"          $(…) in a value runs (mlflow#12475 is the same in docker)
    python main.py '{x}'          the quotes cancel out, the value stands bare
    `basename {x}`                a backtick in a value ends the command
    ${x}   \\{x}                  $'…' and \\' are other quotes
    $(( {x} ))  [[ {x} -eq 1 ]]   arithmetic runs a[$(…)]
    eval {x}   bash -c {x}        the value is read as a command; so is `{x} main.py`
    <<EOF … {x}                   a here-document expands $(…), quotes or not
    ${{VAR:-{x}}}  {x!r}  {x:.3}  {x[0]}   the quotes are lost or cut

What a program of the executor's own does with a value (`os.system`, `eval "$saved"` later) cannot be seen here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection
from dataclasses import dataclass, field

from segserve.errors import did_you_mean

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_INTERPRETER = re.compile(r"(ba|da|z|k|a)?sh|python[0-9.]*")
_WRAPPERS = frozenset({"command", "builtin", "exec", "env", "time", "nohup", "nice", "setsid", "!", "{", "("})
_KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do"})
# Builtins that read an argument as code, as arithmetic or as the name of an array element, which may hold $(…).
_EVALUATE = frozenset(
    (
        "eval",
        "let",
        "trap",
        "declare",
        "typeset",
        "local",
        "readonly",
        "unset",
        "read",
        "mapfile",
        "readarray",
        "wait",
        "[[",
    )
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a command cannot run: rule, sentence, what to do."""

    rule: str
    message: str
    fix: str


def check(command: str, declared: Collection[str]) -> tuple[Problem, ...]:
    """Everything that makes a command fail or dangerous, given the names of the declared parameters."""
    try:
        parts = list(string.Formatter().parse(command))
    except ValueError as error:
        fix = "Write {{ and }} where braces are meant as such."
        return (Problem("command-braces", f"The braces in the command do not fit: {error}.", fix),)
    shell = _Shell()
    problems = []
    for literal, name, form, conversion in parts:
        shell.feed(literal)
        if name is None:
            continue
        problem = _reference(name, form or "", conversion, declared)
        danger = "" if problem else shell.danger()
        if danger:
            fix = f"Let {{{name}}} stand alone, without quotes around it: MLflow quotes the value."
            problem = Problem("unsafe-placeholder", f"{{{name}}} stands {danger}, where a value can run commands.", fix)
        if problem and problem not in problems:
            problems.append(problem)
        shell.value()
    return tuple(problems)


def _reference(name: str, form: str, conversion: str | None, declared: Collection[str]) -> Problem | None:
    if name not in declared or re.search(r"[.\[]", name):  # str.format reads these as attribute and index
        if name == "" or name.isdigit():
            message = f"The placeholder {{{name}}} has no name."
        else:
            message = f"The command uses {{{name}}}, which is no declared parameter."
        fix = f"{did_you_mean(name, declared)} Double the braces if they are meant as such.".strip()
        return Problem("undeclared-placeholder", message, fix)
    if form or conversion:
        message = f"{{{name}}} has a format or conversion, which cuts or doubles the quotes around the value."
        return Problem("unsafe-placeholder", message, f"Write {{{name}}}.")
    return None


@dataclass
class _Command:
    """The simple command that is being read: its finished words, the one that is open, and what comes next."""

    words: list[str] = field(default_factory=list)
    word: str | None = None
    redirect: bool = False

    def add(self, text: str) -> None:
        self.word = (self.word or "") + text

    def end_word(self) -> None:
        if self.word is None:
            return
        if self.redirect:
            self.redirect = False
        elif self.word in _KEYWORDS and not self.words:
            pass  # the command begins behind it
        else:
            self.words.append(self.word)
        self.word = None

    def program(self) -> str | None:
        """The word that is run: behind assignments and `env`, `exec` and the like. None: not there yet."""
        plain = [word for word in self.words if not _ASSIGNMENT.match(word)]
        return next((word for word in plain if word not in _WRAPPERS and not word.startswith("-")), None)


class _Shell:
    """Enough of bash's reader to know the context at any point. `feed` takes text, `value` stands for a placeholder."""

    def __init__(self) -> None:
        self.stack = [""]  # "" command, ( subshell or $(…), ' " $' quotes, ` backticks, ${ expansion, (( arithmetic, #
        self.commands = [_Command()]
        self.escaped = False
        self.previous = ""
        self.heredoc = ""  # "": none; "pending": the line ends first; "open": in its text

    def feed(self, text: str) -> None:
        for character in text:
            if self.escaped:
                self.escaped = False
                self._add(character if character != "\n" else "")  # `\\eval` is eval
            elif character == "\\" and self.stack[-1] not in ("'", "#"):
                self.escaped = True
            elif self.stack[-1] in ("", "("):
                self._plain(character)
            else:
                self._quoted(character)
            self.previous = character

    def value(self) -> None:
        self.escaped = False
        self._add("\0")
        self.previous = "\0"

    def danger(self) -> str:
        """In what dangerous place a value would stand now; empty if it is safe."""
        names = {"'": "inside single quotes", "$'": "inside $'…'", '"': "inside double quotes"}
        if self.stack[-1] in names:
            return names[self.stack[-1]]
        anywhere = {"`": "inside backticks", "${": "inside ${…}", "((": "in arithmetic"}
        for kind, name in anywhere.items():
            if kind in self.stack:
                return name
        if self.heredoc == "open":
            return "in a here-document"
        if self.escaped:
            return "behind a backslash"
        if self.previous == "$":
            return "behind a '$'"
        return "" if self.stack[-1] == "#" else self._command_danger(self.commands[-1])

    def _command_danger(self, command: _Command) -> str:
        if command.redirect or (command.word and _ASSIGNMENT.match(command.word) and command.program() is None):
            return ""
        program = command.program()
        if program is None:
            return "where the name of the program is expected"
        if program in _EVALUATE:
            return f"behind '{program}'"
        if program in ("test", "[", "printf") and "-v" in command.words:
            return f"behind '{program} -v'"
        interpreters = [word for word in command.words if _INTERPRETER.fullmatch(word.rpartition("/")[2])]
        if interpreters and re.fullmatch(r"-[a-zA-Z]*c", command.words[-1]):
            return f"as a script for '{interpreters[-1]} -c'"
        return ""

    def _add(self, text: str) -> None:
        if self.stack[-1] != "#":
            self.commands[-1].add(text)

    def _push(self, kind: str) -> None:
        self.stack.append(kind)
        if kind == "(":
            self.commands.append(_Command())

    def _pop(self) -> None:
        if self.stack.pop() == "(":
            self.commands.pop()
            self._add("\0")

    def _plain(self, character: str) -> None:
        command = self.commands[-1]
        if character in " \t":
            command.end_word()
        elif character in "\n;|&":
            command.end_word()
            self._next_command(character)
        elif character in "<>":
            self._redirection(character)
        elif character == "#" and command.word is None:
            self.stack.append("#")
        elif character == ")" and self.stack[-1] == "(":
            self._pop()
        elif character == "(":
            self._push("((" if self.previous == "(" else "(")
        else:
            self._quote(character)

    def _next_command(self, character: str) -> None:
        # `2>&1` and `&>` are no ends of a command.
        if not (character == "&" and self.previous in "<>"):
            self.commands[-1] = _Command()
        if character == "\n" and self.heredoc == "pending":
            self.heredoc = "open"

    def _redirection(self, character: str) -> None:
        command = self.commands[-1]
        if command.word is not None and command.word.isdigit():
            command.word = None
        command.end_word()
        command.redirect = True
        if character == "<" == self.previous:
            self.heredoc = "" if self.heredoc == "pending" else "pending"  # `<<<` is a here-string: one word

    def _quote(self, character: str) -> None:
        """A quote or an expansion begins, in a plain word or inside double quotes; or it is just a character."""
        dollar = self.previous == "$"
        if character == "'" and self.stack[-1] != '"':
            self._push("$'" if dollar else "'")
            self._add("")
        elif character == '"' or character == "`":
            self._push(character)
            self._add("")
        elif dollar and character == "{":
            self._push("${")
        elif dollar and character == "[":
            self._push("((")
        else:
            self._add(character)

    def _quoted(self, character: str) -> None:
        kind = self.stack[-1]
        closing = {"'": "'", "$'": "'", '"': '"', "`": "`", "${": "}", "#": "\n"}
        if character == closing.get(kind):
            self._pop()
            if kind == "#":
                self._plain("\n")
        elif kind == "((":
            self._arithmetic(character)
        elif kind in ('"', "${", "`"):
            if character == "(" and self.previous == "$":
                self._push("(")
            else:
                self._quote(character)
        elif kind != "#":
            self._add(character)

    def _arithmetic(self, character: str) -> None:
        # `((` came after a `(` that is on the stack as well: both close, whatever order; `$[` closes with `]`.
        if character == "(":
            self.stack.append("((")
        elif character in ")]":
            self.stack.pop()
