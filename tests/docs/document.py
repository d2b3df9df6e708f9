"""Runs the code blocks of one Markdown document, as a program: `python document.py DOCUMENT [COMMAND TO LEAVE OUT...]`.

Blocks run in the document's order, in the current directory.

- A Python block whose first line is a comment that names a file (`# shop/orders.py`) is written to that file, its
  packages with an empty `__init__.py` where they have none. It is imported at once, unless a later block imports or
  runs it.
- Any other Python block is executed in the document's one namespace; it may use `await`.
- A Python block that reads an environment variable which is not set (`os.environ["DATABASE_URL"]`) wants a server that
  is not there: it is compiled only, and written to no file.
- Each command of a `console` or `bash` block runs in a shell and has to succeed. In a `console` block the lines
  below a command are what it prints; `...` stands for anything.

Standard library only: what a document needs, it gets from the environment.
"""

import ast
import asyncio
import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
WANTED = re.compile(r"""os\.environ\[["'](\w+)["']\]""")
FILE_NAME = re.compile(r"^#[ \t]*(?P<path>[\w./-]+\.py)[ \t]*$")
OUTPUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block; the line is that of its opening fence."""

    language: str
    source: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the block's first line names."""
        named = FILE_NAME.match(self.source.partition("\n")[0])
        return named["path"] if self.language == "python" and named else None

    @property
    def lacks_a_server(self) -> bool:
        """Whether it reads an environment variable that is not set."""
        return self.language == "python" and any(name not in os.environ for name in WANTED.findall(self.source))


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command of a block with what it is said to print (None: anything)."""

    text: str
    expected: str | None
    line: int


class DocumentError(Exception):
    """A block does not do what the document says."""


def read_blocks(text: str) -> list[Block]:
    """All fenced code blocks, also indented ones (in lists, tabs and admonitions)."""
    blocks = []
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        opening = FENCE.match(line)
        if opening is None:
            continue
        body = []
        for _, inner in lines:
            if inner.strip().startswith(opening["fence"]) and not inner.strip().strip(opening["fence"][0]):
                break
            body.append(inner.removeprefix(opening["indent"]))
        else:
            message = f"line {number}: this code block is never closed"
            raise ValueError(message)
        words = opening["info"].split()
        blocks.append(Block(words[0] if words else "", "".join(f"{inner}\n" for inner in body), number))
    return blocks


def commands(block: Block) -> list[Command]:
    """The commands of a `bash` block (every line is one), or of a `console` block (`$ ` and `> ` begin them)."""
    found: list[Command] = []
    lines = iter(enumerate(block.source.splitlines(), start=block.line + 1))
    if block.language == "console":
        for number, line in lines:
            if line.startswith("$ "):
                found.append(Command(line[2:], None, number))
            elif not found:
                message = f"{number}: a console block begins with a command, `$ …`"
                raise DocumentError(message)
            elif line.startswith("> ") and found[-1].expected is None:
                found[-1] = Command(f"{found[-1].text}\n{line[2:]}", None, found[-1].line)
            else:
                found[-1] = Command(found[-1].text, f"{found[-1].expected or ''}{line}\n", found[-1].line)
    else:
        for number, line in lines:
            text = line.strip()
            while text.endswith("\\"):
                text = f"{text[:-1].rstrip()} {next(lines)[1].strip()}"
            text = re.sub(r"(^|\s+)#.*$", "", text)
            if text:
                found.append(Command(text, None, number))
    return found


def module_of(file: str) -> str:
    """The module that a file becomes: `shop/orders.py` is `shop.orders`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def used_later(file: str, later: Sequence[Block]) -> bool:
    """Whether a later block imports the file's module, or runs it by a command."""
    module = module_of(file)
    for block in later:
        if block.language == "python" and module in imported(block.source):
            return True
        if block.language in {"console", "bash"} and (
            file in block.source or re.search(rf"\b{re.escape(module)}\b", block.source)
        ):
            return True
    return False


def imported(source: str) -> Iterator[str]:
    """The modules that a source imports, with those that `from package import name` may mean."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class Runner:
    """Runs blocks in order; what one defines, the next ones see."""

    def __init__(self, document: Path, left_out: Sequence[str]) -> None:
        self.document = document
        self.left_out = frozenset(left_out)
        self.namespace: dict[str, object] = {"__name__": "__main__", "__file__": str(document)}
        self.loop = asyncio.Runner()

    def run(self, blocks: Sequence[Block]) -> None:
        with self.loop:
            for position, block in enumerate(blocks):
                if block.lacks_a_server:
                    self.compile(block)
                elif block.file:
                    self.write(block, block.file)
                    if not used_later(block.file, blocks[position + 1 :]):
                        importlib.import_module(module_of(block.file))
                elif block.language == "python":
                    self.execute(block)
                elif block.language in {"console", "bash"}:
                    for command in commands(block):
                        self.shell(command)

    def write(self, block: Block, file: str) -> None:
        path = Path(file)
        if path.is_absolute() or ".." in path.parts:
            message = f"{block.line}: {file} lies outside the document's directory"
            raise DocumentError(message)
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in path.parents[:-1]:
            (package / "__init__.py").touch()
        path.write_text(block.source, encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop(module_of(file), None)

    def compile(self, block: Block) -> CodeType:
        # Empty lines in front give tracebacks the document's own line numbers.
        source = "\n" * block.line + block.source
        return compile(source, str(self.document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)

    def execute(self, block: Block) -> None:
        code = self.compile(block)
        if code.co_flags & inspect.CO_COROUTINE:
            self.loop.run(eval(code, self.namespace))
        else:
            exec(code, self.namespace)

    def shell(self, command: Command) -> None:
        if command.text in self.left_out:
            return
        outcome = subprocess.run(
            command.text, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if outcome.returncode:
            message = f"{command.line}: `{command.text}` ended with status {outcome.returncode}\n{outcome.stdout}"
            raise DocumentError(message)
        if command.expected is not None and not doctest.OutputChecker().check_output(
            command.expected.strip(), outcome.stdout.strip(), OUTPUT
        ):
            message = f"{command.line}: `{command.text}` printed\n{outcome.stdout}instead of\n{command.expected}"
            raise DocumentError(message)


def main(document: str, *left_out: str) -> None:
    """Run the document; ends with a traceback at the first block that fails."""
    # Modules come from the document's directory, not from the one of this program.
    sys.path[0] = str(Path.cwd())
    path = Path(document)
    try:
        Runner(path, left_out).run(read_blocks(path.read_text(encoding="utf-8")))
    except DocumentError as error:
        sys.exit(f"{path}:{error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
