"""docs/reference/cli.md shows what every command prints, in text and in JSON."""

from collections.abc import Iterator

import click
import pytest

from cqrs.cli.program import cqrs as program
from tests.docs.cli_page import BLOCK, PAGE, Cleaner, fresh_page, paste, skeleton


def on_page() -> list[str]:
    """Return the commands on the page."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def commands(group: click.Group = program, path: str = "cqrs") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def takes_json(command: click.Command) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_shows_what_the_commands_print():
    """`make pages` mends it."""
    assert list(skeleton(fresh_page())) == list(skeleton(PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_is_on_the_page_in_text_and_where_it_reads_in_json(path: str, command: click.Command):
    shown = [f"{line} " for line in on_page() if f"{path} " in f"{line} "]
    assert any(" --json " not in line for line in shown) or path == "cqrs asyncapi"
    assert any(" --json " in line for line in shown) or not takes_json(command)


def test_what_commands_print_replaces_what_stood_there():
    page = "text\n\n```text\n$ cqrs a\nold\n\n$ cqrs b\n```\n\n```text\nleft alone\n```\n"
    pasted = paste(page, lambda command: f"new of {command}\n")
    assert pasted == (
        "text\n\n```text\n$ cqrs a\nnew of cqrs a\n\n$ cqrs b\nnew of cqrs b\n```\n\n```text\nleft alone\n```\n"
    )


def test_ids_and_times_are_the_same_at_every_run(tmp_path):
    first, second = "01a21af3-aad3-7664-8c54-23761ae5182d", "01a21af3-aad3-7664-8c54-23761ae5182e"
    cleaned = Cleaner(tmp_path).clean(f"{first} {second} {first} 2026-11-27T03:04:54.123456Z {tmp_path}/app.db")
    numbered = [f"01a21ad6-0000-7000-8000-{number:012d}" for number in (1, 2, 1)]
    assert cleaned == f"{' '.join(numbered)} 2026-02-03T04:05:06.789Z /home/ann/shop/app.db\n"


def test_versions_lines_and_widths_are_no_difference():
    assert list(skeleton("click    8.5.1\na.py:12")) == list(skeleton("click  10.0\na.py:7"))
