"""Parses shell commands of cluster files: words, variables, flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_SEPARATOR = re.compile(r"[;&|\n]+")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def assignments(words: Sequence[str]) -> dict[str, str]:
    """Gets the variables that shell words set."""
    found = (_ASSIGNMENT.fullmatch(word) for word in words)
    return {match[1]: match[2] for match in found if match}


def exports(words: Sequence[str]) -> dict[str, str]:
    """Gets the variables that a command inherits: exported ones, and those set before it."""
    values: dict[str, str] = {}
    exported: set[str] = set()
    command: list[str] = []
    for word in (*words, ";"):
        if not _SEPARATOR.fullmatch(word):
            command.append(word)
            continue
        values |= assignments(command)
        if command[:1] == ["export"]:
            exported |= {name.partition("=")[0] for name in command[1:]}
        last, command = command, []
    before_command = assignments(last)
    return {n: v for n, v in values.items() if n in exported} | before_command


def shell_words(command: str) -> list[str]:
    """Splits a command into words; `;`, `&&` and the like are separate words.

    Raises:
        ValueError: a quote is not closed.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace_split = True
    lexer.whitespace = " \t\r"
    return list(lexer)


# A file written by a command, which later commands source.
_WRITTEN = re.compile(r"cat\s*>>?\s*(\S+)\s*<<-?\s*'?(\w+)'?\n(.*?)\n\s*\2\b", re.DOTALL)


def written_variables(commands: Sequence[object]) -> dict[str, dict[str, str]]:
    """Gets the variables that shell commands write to files, by file."""
    files: dict[str, dict[str, str]] = {}
    for match in _WRITTEN.finditer("\n".join(map(str, commands))):
        for line in match[3].splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue
            files.setdefault(match[1], {}).update(exports([*words, "\n"]))
    return files


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """Parses a command's flags up to the next separator."""
    flags: dict[str, str] = {}
    name = ""
    for word in words:
        if _SEPARATOR.fullmatch(word):
            break
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name] = value
        elif name and not flags[name]:
            flags[name] = word
    return flags
