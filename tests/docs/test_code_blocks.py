"""Every fenced code block of README.md and docs/ does what it says: each document runs in a process of its own."""

import asyncio
import configparser
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.document import Block, commands, read_blocks
from tests.servers import empty_database, server

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TIMEOUT = 120.0

# Commands that no document's process runs, each with the reason and the step that covers it instead.
COVERED_ELSEWHERE = {
    "pip install cqrs-toolkit": "wants the network; the test that installs the built wheel",
    "pip install 'cqrs-toolkit[all]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[cli]'": "wants the network; `make demo` sets up its environment with it",
    "pip install 'cqrs-toolkit[postgres]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[mysql]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[postgres,kafka]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[postgres,kafka,faststream]'": "wants the network; `make test` has it all",
    "pip install cqrs-toolkit 'psycopg[binary]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[kafka]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[faststream,kafka]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[rabbitmq]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[fastapi]'": "wants the network; `make test` sets up its environment with it",
    "pip install 'cqrs-toolkit[fastapi]' uvicorn": "wants the network; `make test` sets up its environment with it",
    "uvicorn hello:api": "serves until it is ended; tests/examples/test_hello.py",
    "uvicorn shop:api": "serves until it is ended; the page asks the same application without a server",
    "uv add cqrs-toolkit": "wants the network; the test that installs the built wheel",
    "cqrs run shop.main:app": "runs until a signal; tests/unit/cli/test_running.py",
    "make demo": "sets up an environment; .ci/run, section Demo",
    "make demo CSV=orders.csv": "sets up an environment; the tests of examples/shop pass files of their own",
    "python -m examples.shop --http": "wants a checkout; tests/examples/test_shop.py",
    "scripts/services up": "installs and starts servers; .ci/run, section Servers",
    'eval "$(scripts/services env)"': "wants a checkout; .ci/run, section Servers",
    "kcat -b ${KAFKA_URL#kafka://} -C -t orders -o beginning -e -q -c 1 -f 'key: %k\\nheaders: %h\\nbody: %s\\n'": (
        "wants Kafka; tests/examples/test_shop_on_servers.py reads with kcat"
    ),
    "kafka-console-consumer.sh --bootstrap-server ${KAFKA_URL#kafka://} --topic orders --from-beginning "
    "--max-messages 1 --property print.key=true --property print.headers=true": (
        "wants Kafka; tests/examples/test_shop_on_servers.py reads with kcat and aiokafka"
    ),
    "alembic -x url=sqlite+aiosqlite:///app.db upgrade head": "wants a checkout; the tests of migrations",
    "alembic -x url=sqlite+aiosqlite:///app.db downgrade base": "wants a checkout; the tests of migrations",
    "make test": "would run this test; .ci/run, section Tests",
    "make check": "sets up an environment; .ci/run, section Static checks",
    "make docs": "sets up an environment; .ci/run, section Documentation",
    "make bench": "takes minutes; nobody runs it but a person who wants the figures",
    "make bench ARGS=--quick": "sets up an environment; nobody runs it but a person who wants the figures",
    "make pythons": "takes minutes; .ci/run, section Unit tests, other Pythons",
}

# Documents with blocks that want a database server, by the variable that names it; they find it as DATABASE_URL.
SERVERS = {"docs/postgresql.md": "POSTGRES_URL", "docs/mysql.md": "MYSQL_URL"}

# Languages that are shown, not executed.
SHOWN = {"text", "mermaid", "sql", "csv", "http", "xml", "yaml", "properties", "diff", "html", "promela"}
EXECUTED = {"python", "console", "bash"}
PARSED = {
    "toml": tomllib.loads,
    "json": json.loads,
    "ini": lambda text: configparser.ConfigParser(interpolation=None).read_string(text),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def problem(document: Path, block: Block) -> str | None:
    """What is wrong with a block that the document's process would not notice."""
    if block.language not in EXECUTED | SHOWN | PARSED.keys():
        return f"{name(document)}:{block.line}: nobody tests a block of language {block.language!r}"
    try:
        PARSED.get(block.language, str)(block.source)
    except (ValueError, configparser.Error) as error:
        return f"{name(document)}:{block.line}: {error}"
    return None


def run(document: Path, directory: Path, database: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the document's blocks with the directory as working directory and this environment's programs on PATH."""
    given = {} if database is None else {"DATABASE_URL": database}
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment = (
        kept
        | given
        | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
    )
    # By its path: the checkout itself is not on the module search path, so a document cannot lean on it.
    runner = [sys.executable, "-W", "error", str(ROOT / "tests/docs/document.py"), str(document)]
    return subprocess.run(
        [*runner, *COVERED_ELSEWHERE],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_code_block_runs(document: Path, tmp_path: Path):
    blocks = read_blocks(document.read_text(encoding="utf-8"))
    assert [found for block in blocks if (found := problem(document, block))] == []
    if any(block.language in EXECUTED for block in blocks):
        outcome = run(document, tmp_path)
        assert outcome.returncode == 0, f"{name(document)}\n{outcome.stdout}\n{outcome.stderr}"


@pytest.mark.services
@pytest.mark.parametrize("document", SERVERS)
async def test_every_code_block_runs_with_a_server(document: str, tmp_path: Path):
    async with empty_database(server(SERVERS[document])) as database:
        outcome = await asyncio.to_thread(run, ROOT / document, tmp_path, database)
    assert outcome.returncode == 0, f"{document}\n{outcome.stdout}\n{outcome.stderr}"


def test_a_command_that_is_covered_elsewhere_names_where():
    assert [command for command, where in COVERED_ELSEWHERE.items() if "; " not in where] == []


# The runner itself: a test that runs nothing would pass as well.


def write(directory: Path, text: str) -> Path:
    document = directory / "document.md"
    document.write_text(text, encoding="utf-8")
    (directory / "work").mkdir()
    return document


def test_blocks_run_in_order_with_files_await_and_expected_output(tmp_path: Path):
    document = write(
        tmp_path,
        """\
```python
# shop/main.py
from shop.orders import price

print(price)
```

=== "indented"

    ```python
    # shop/orders.py
    price = 3
    ```

```python
import asyncio

import shop.orders

price = await asyncio.sleep(0, shop.orders.price)
```

```python
assert price == 3
```

```console
$ python -m shop.main
3
$ python -c "print('a'); print('b')
> print('c')"
a
...
c
$ make demo
```
""",
    )
    outcome = run(document, tmp_path / "work")
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "work/shop/__init__.py").exists()


def test_a_block_that_wants_a_server_is_compiled_only_while_there_is_none(tmp_path: Path):
    document = write(tmp_path, '```python\nimport os\n\nprint(os.environ["DATABASE_URL"])\n```')
    assert run(document, tmp_path / "work").stdout == ""
    assert (
        run(document, tmp_path / "work", "postgresql+asyncpg://host/name").stdout == "postgresql+asyncpg://host/name\n"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nimport os\nos.environ['NOBODY_SETS_THIS'\n```", "was never closed"),
        ("\n\n```python\n1 / 0\n```", 'document.md", line 4, in'),
        ("```python\nx = 1\nimport asyncio; await asyncio.sleep(0); raise KeyError(x)\n```", 'document.md", line 3'),
        ("```python\n# shop/orders.py\n\nraise KeyError\n```", 'shop/orders.py", line 3'),
        ("```bash\nexit 3\n```", "document.md:2: `exit 3` ended with status 3"),
        ("```console\n$ echo one\ntwo\n```", "document.md:2: `echo one` printed\none\ninstead of\ntwo"),
        ("```console\necho one\n```", "document.md:2: a console block begins with a command, `$ …`"),
        ("```python\n# ../orders.py\nx = 1\n```", "document.md:1: ../orders.py lies outside"),
    ],
)
def test_a_document_that_does_not_do_what_it_says_is_refused(tmp_path: Path, text: str, error: str):
    outcome = run(write(tmp_path, text), tmp_path / "work")
    assert outcome.returncode != 0
    assert error in outcome.stderr


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```toml\na = \n```", "document.md:1: Invalid value"),
        ("```\nno language\n```", "document.md:1: nobody tests a block of language ''"),
        ("~~~pyhton\nx = 1\n~~~", "document.md:1: nobody tests a block of language 'pyhton'"),
    ],
)
def test_a_block_that_nobody_could_test_is_refused(tmp_path: Path, text: str, error: str):
    found = [problem(tmp_path / "document.md", block) for block in read_blocks(text)]
    assert len(found) == 1
    assert found[0] is not None
    assert found[0].startswith(error)


def test_a_fence_that_is_never_closed_is_refused():
    with pytest.raises(ValueError, match="line 3: this code block is never closed"):
        read_blocks("text\n\n```python\nx = 1\n")


def test_commands_are_read_with_continuations_and_without_comments():
    block = Block("bash", "# set up\nmake demo \\\n  CSV=orders.csv\n\nmake test  # all\n", line=10)
    assert [(command.line, command.text) for command in commands(block)] == [
        (12, "make demo CSV=orders.csv"),
        (15, "make test"),
    ]
