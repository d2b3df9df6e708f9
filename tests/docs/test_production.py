"""What docs/production.md tells an operator is so: its SQL runs, and its log lines are the code's own."""

import ast
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

import cqrs
from tests.docs.document import read_blocks
from tests.servers import empty_database, server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/production.md").read_text(encoding="utf-8")
KINDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL and MariaDB"}
SERVER = pytest.mark.services


def statements(kind: str) -> list[str]:
    """The page's statements for this kind of database; each follows a comment that says for which one it is."""
    blocks = "\n".join(block.source for block in read_blocks(PAGE) if block.language == "sql")
    parts = re.findall(r"^-- ([^:\n]+).*\n((?:(?!--).*\n?)*)", blocks, flags=re.MULTILINE)
    assert {meant for meant, _ in parts} == {"every database", *KINDS.values()}
    meant = ("every database", KINDS[kind])
    return [one.strip() for where, sql in parts if where in meant for one in sql.split(";") if one.strip()]


@pytest.mark.parametrize(
    "variable", [None, pytest.param("POSTGRES_URL", marks=SERVER), pytest.param("MYSQL_URL", marks=SERVER)]
)
async def test_every_statement_runs_and_the_application_opens_as_it_says(variable: str | None, tmp_path: Path):
    async with AsyncExitStack() as stack:
        url = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
        if variable is not None:
            url = await stack.enter_async_context(empty_database(server(variable)))
        async with cqrs.bootstrap(registry=cqrs.Registry(), name="shop", database=url, migrate=True):
            pass
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            for statement in statements(make_url(url).get_backend_name()):
                await connection.execute(text(statement.replace(":", r"\:")))
        await engine.dispose()
        async with cqrs.bootstrap(registry=cqrs.Registry(), name="store", database=url, slots=32) as app:
            assert (await app.outbox.counts()).outbox == 0


def sources(logger: str) -> list[str]:
    """Return the source of the module that a logger is named after, and of those that speak in its name."""
    others = [path.read_text(encoding="utf-8") for path in (ROOT / "cqrs").rglob("*.py")]
    own = (ROOT / f"{logger.replace('.', '/')}.py").read_text(encoding="utf-8")
    return [own, *(source for source in others if f'getLogger("{logger}")' in source)]


def test_every_log_line_is_one_of_the_code():
    lines = re.findall(r"^\| (?:error|warning) \| `(cqrs[\w.]+)` \| `([^`]+)` \|", PAGE, flags=re.MULTILINE)
    assert len(lines) >= 12
    for logger, line in lines:
        nodes = [node for source in sources(logger) for node in ast.walk(ast.parse(source))]
        said = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        assert any(pattern.search(one) for one in said), line
