"""How the command line's words are read: mistakes become `UserError`, files are told from overrides."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from personalign.composition.home import nearest
from personalign.contracts import UserError

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Argparse with worked examples under each help, and mistakes as `UserError`."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog,
            description=description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def add_words(self, meaning: str) -> None:
        """Take any number of words: a file and overrides, to be told apart by `split`."""
        self.add_argument("words", nargs="*", metavar="WORD", help=meaning)


class CommandLine(Parser):
    """The whole command line: its commands, and how a line of words is read."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(prog, description, examples)
        self.commands: dict[str, Parser] = {}
        self._children = self.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)

    def command(self, name: str, summary: str, examples: str, run: Command) -> Parser:
        """Add a command; `run` takes what was read and returns the exit status."""
        child = self._children.add_parser(
            name, help=summary, prog=f"{self.prog} {name}", description=summary, examples=examples
        )
        child.set_defaults(run=run, parser=child)
        self.commands[name] = child
        return child

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a line; options and words may come in any order. Raises UserError."""
        name = next((word for word in words if not word.startswith("-")), None)
        if name is not None and name not in self.commands:
            self.error(f"there is no command {name!r}{nearest(name, self.commands)}")
        arguments, rest = self.parse_known_args(words)
        if name is None:
            self.error(f"unknown option {rest[0]}" if rest else "a command is expected")
        for word in rest:
            if word.startswith("-") or "words" not in arguments:
                options = re.findall(r"--[a-z-]+", arguments.parser.format_usage())
                arguments.parser.error(f"unexpected {word!r}{nearest(word, options)}")
            arguments.words.append(word)
        return arguments


def split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The one word that names a file, if there is one, and the overrides (`key=value`, `~key`)."""
    files = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(files) > 1:
        raise UserError(f"one file at a time, and overrides as key=value: {' '.join(files)}")
    return (files[0] if files else None), [word for word in words if word not in files]
