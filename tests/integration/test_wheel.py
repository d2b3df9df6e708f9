"""The built wheel in a fresh environment outside the checkout: what a user does on the first day.

The wheel is built with the hatchling that is there, and everything is installed with uv where there is one; otherwise
build and pip fetch what they need.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BESIDE_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
UV = shutil.which("uv", path=BESIDE_PYTHON)
TABLES = {"cqrs_outbox", "cqrs_parked", "cqrs_inbox", "cqrs_slot", "cqrs_settings"}

# What would let a program find the checkout, or reach into the environment that runs the tests.
LEFT_OUT = {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CQRS_DATABASE_URL"}


def call(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program that has to succeed, and return what it prints."""
    ended = subprocess.run([*map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{arguments} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment that holds the wheel and what it depends on, and nothing else."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def python(self, *arguments: object, cwd: Path) -> str:
        return call(self.programs / "python", "-W", "error", *arguments, cwd=cwd, env=self.environment)

    def alembic(self, *arguments: object, cwd: Path) -> str:
        return call(self.programs / "alembic", *arguments, cwd=cwd, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        path = os.pathsep.join([str(self.programs), own.get("PATH", "")])
        return own | {"PATH": path, "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    fetched = ["--installer", "uv"] if UV else []
    how = ["--no-isolation"] if find_spec("hatchling") else fetched
    environment = os.environ | {"PATH": BESIDE_PYTHON}
    call(sys.executable, "-m", "build", "--wheel", *how, "--outdir", folder, ROOT, cwd=folder, env=environment)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    environment = Installed(folder)
    if UV:
        call(UV, "venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
        call(UV, "pip", "install", "--quiet", "--python", environment.programs / "python", wheel, cwd=folder.parent)
    else:
        venv.create(folder, with_pip=True)
        call(environment.programs / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder.parent)
    return environment


def tables(database: Path, python: Installed) -> set[str]:
    program = (
        "import contextlib, sqlite3, sys\n"
        "with contextlib.closing(sqlite3.connect(sys.argv[1])) as database:\n"
        "    print(*(name for name, in database.execute(\"SELECT name FROM sqlite_master WHERE type = 'table'\")))\n"
    )
    return set(python.python("-c", program, database, cwd=database.parent).split())


# The wheel itself


def test_the_wheel_holds_the_package_and_the_migrations_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {"cqrs", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert names >= {
        "cqrs/py.typed",
        "cqrs/migrations.py",
        "cqrs/migrations/env.py",
        "cqrs/migrations/script.py.mako",
        "cqrs/migrations/versions/cqrs_0001_outbox.py",
    }
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


def test_the_wheel_holds_every_module_and_every_revision_of_the_checkout(wheel: Path):
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "cqrs").rglob("*.py")}
    revisions = {f"cqrs/{file.relative_to(ROOT)}" for file in (ROOT / "migrations").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(".py")} == modules | revisions


def test_the_folder_of_migrations_is_no_package_that_would_hide_the_module(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        assert "cqrs/migrations/__init__.py" not in archive.namelist()


# From it


def test_the_package_comes_from_the_environment_and_not_from_the_checkout(installed: Installed, tmp_path: Path):
    found = installed.python("-c", "import cqrs, cqrs.migrations as m; print(cqrs.__file__, m.__file__)", cwd=tmp_path)
    assert all(Path(file).is_relative_to(installed.folder) for file in found.split())


def test_every_public_name_is_there_without_an_extra(installed: Installed, tmp_path: Path):
    program = "import cqrs; print(len([getattr(cqrs, name) for name in cqrs.__all__]))"
    assert int(installed.python("-c", program, cwd=tmp_path)) > 0


QUICK_START = """
import asyncio

import cqrs
from cqrs.events import Event


class CreateUserResponse(cqrs.Response):
    user_id: str


class CreateUserCommand(cqrs.Request):
    email: str
    name: str


class GetUserResponse(cqrs.Response):
    name: str


class GetUserQuery(cqrs.Request):
    user_id: str


class UserCreatedEvent(Event):
    user_id: str


class CreateUserHandler(cqrs.RequestHandler[CreateUserCommand, CreateUserResponse]):
    def __init__(self): self._events: list[Event] = []
    @property
    def events(self) -> list[Event]: return self._events
    async def handle(self, request: CreateUserCommand) -> CreateUserResponse:
        self._events.append(UserCreatedEvent(user_id="user_1"))
        return CreateUserResponse(user_id="user_1")

class GetUserHandler(cqrs.RequestHandler[GetUserQuery, GetUserResponse]):
    async def handle(self, request: GetUserQuery) -> GetUserResponse:
        return GetUserResponse(name="John Doe")

class UserCreatedEventHandler(cqrs.EventHandler[UserCreatedEvent]):
    async def handle(self, event: UserCreatedEvent) -> None:
        print("handled:", event.user_id)


async def main():
    mediator = cqrs.bootstrap.bootstrap(
        commands_mapper=lambda m: m.bind(CreateUserCommand, CreateUserHandler),
        queries_mapper=lambda m: m.bind(GetUserQuery, GetUserHandler),
        domain_events_mapper=lambda m: m.bind(UserCreatedEvent, UserCreatedEventHandler),
    )
    result = await mediator.send(CreateUserCommand(email="user@example.com", name="John Doe"))
    print(f"User created: {result.data['user_id']}")
    print((await mediator.send(GetUserQuery(user_id="user_1"))).name)


asyncio.run(main())
"""


def test_the_quick_start_in_the_class_style_runs(installed: Installed, tmp_path: Path):
    (tmp_path / "users.py").write_text(QUICK_START)
    assert installed.python("users.py", cwd=tmp_path).splitlines() == [
        "handled: user_1",
        "User created: user_1",
        "John Doe",
    ]


ONE_SCRIPT = """
import asyncio

import cqrs


class PlaceOrder(cqrs.Command[str]):
    sku: str


@cqrs.integration_event(topic="orders", key="order_id")
class OrderPlaced(cqrs.Event):
    order_id: str


@cqrs.command_handler
async def place_order(command: PlaceOrder, context: cqrs.Context) -> str:
    context.emit(OrderPlaced(order_id=command.sku))
    return command.sku


@cqrs.event_handler
async def send_receipt(event: OrderPlaced) -> None:
    print("receipt for", event.order_id)


async def main() -> None:
    async with cqrs.bootstrap(database="sqlite+aiosqlite:///new.db") as app:
        print("placed", await app.send(PlaceOrder(sku="tea")))
        await app.drain()


asyncio.run(main())
"""


def test_one_script_delivers_on_a_database_that_did_not_exist(installed: Installed, tmp_path: Path):
    (tmp_path / "shop.py").write_text(ONE_SCRIPT)
    assert installed.python("shop.py", cwd=tmp_path).splitlines() == ["placed tea", "receipt for tea"]
    assert tables(tmp_path / "new.db", installed) >= TABLES


def test_the_script_runs_again_on_its_database(installed: Installed, tmp_path: Path):
    (tmp_path / "shop.py").write_text(ONE_SCRIPT)
    first = installed.python("shop.py", cwd=tmp_path)
    assert installed.python("shop.py", cwd=tmp_path) == first


def test_the_harness_runs_without_an_extra(installed: Installed, tmp_path: Path):
    opened = 'cqrs.bootstrap(database="sqlite+aiosqlite:///new.db") as app'
    assert opened in ONE_SCRIPT
    harnessed = 'cqrs.testing.harness(cqrs.bootstrap(database="sqlite+aiosqlite:///new.db")) as app'
    script = ONE_SCRIPT.replace("import cqrs\n", "import cqrs\nimport cqrs.testing\n", 1)
    (tmp_path / "shop.py").write_text(script.replace(opened, harnessed).replace("app.drain()", "app.settle()"))
    assert installed.python("shop.py", cwd=tmp_path).splitlines() == ["receipt for tea", "placed tea"]
    assert not (tmp_path / "new.db").exists()


def test_pytest_is_told_of_the_plugin(installed: Installed, tmp_path: Path):
    code = "from importlib.metadata import entry_points; print(*[p.value for p in entry_points(group='pytest11')])"
    assert installed.python("-c", code, cwd=tmp_path).split() == ["cqrs.pytest_plugin"]


def scripts(installed: Installed, cwd: Path) -> Path:
    return Path(installed.python("-c", "import cqrs; print(cqrs.migrations.scripts())", cwd=cwd).strip())


def test_the_scripts_are_inside_the_installed_package(installed: Installed, tmp_path: Path):
    assert scripts(installed, tmp_path).is_relative_to(installed.folder)
    assert (scripts(installed, tmp_path) / "env.py").is_file()


def test_migrate_makes_the_tables(installed: Installed, tmp_path: Path):
    program = """
import sqlalchemy as sa
import cqrs

engine = sa.create_engine("sqlite:///app.db")
with engine.begin() as connection:
    cqrs.migrations.migrate(connection)
engine.dispose()
"""
    installed.python("-c", program, cwd=tmp_path)
    assert tables(tmp_path / "app.db", installed) >= TABLES


def test_alembic_upgrades_checks_and_downgrades_with_the_scripts_of_the_package(installed: Installed, tmp_path: Path):
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {scripts(installed, tmp_path)}\n")
    database = tmp_path / "app.db"
    url = f"url=sqlite+aiosqlite:///{database}"
    installed.alembic("-x", url, "upgrade", "head", cwd=tmp_path)
    assert tables(database, installed) >= TABLES
    assert installed.alembic("-x", url, "check", cwd=tmp_path) == "No new upgrade operations detected.\n"
    assert installed.alembic("-x", url, "heads", cwd=tmp_path) == "cqrs_0001 (head)\n"
    installed.alembic("-x", url, "downgrade", "base", cwd=tmp_path)
    assert tables(database, installed) & TABLES == set()


# A user's own Alembic project

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "articles"
    sku: Mapped[str] = mapped_column(primary_key=True)
"""


@dataclass(frozen=True, slots=True)
class Project:
    """A user's Alembic project, as `alembic init` makes it and docs/migrations.md changes it."""

    folder: Path
    installed: Installed

    @property
    def database(self) -> Path:
        return self.folder / "shop.db"

    def alembic(self, *arguments: str) -> str:
        return self.installed.alembic(*arguments, cwd=self.folder)

    def revision(self, message: str, *arguments: str) -> Path:
        """Return the new file of `alembic revision`."""
        before = set(self.folder.glob("migrations/versions/*.py"))
        self.alembic("revision", "-m", message, *arguments)
        (new,) = set(self.folder.glob("migrations/versions/*.py")) - before
        return new

    def tables(self) -> set[str]:
        return tables(self.database, self.installed)


def replaced(file: Path, changes: Mapping[str, str]) -> None:
    """Change a generated file, each text of which has to be there."""
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in {file.name}"
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture(scope="module", params=[("generic", "sqlite"), ("async", "sqlite+aiosqlite")], ids=["sync", "async"])
def project(request: pytest.FixtureRequest, installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project at its head, with a revision of its own that makes the toolkit's tables and one of its own tables."""
    template, driver = request.param
    project = Project(tmp_path_factory.mktemp("shop"), installed)
    project.alembic("init", "--template", template, "migrations")
    (project.folder / "models.py").write_text(MODELS)
    replaced(
        project.folder / "alembic.ini",
        {"sqlalchemy.url = driver://user:pass@localhost/dbname": f"sqlalchemy.url = {driver}:///{project.database}"},
    )
    replaced(
        project.folder / "migrations" / "env.py",
        {
            "from alembic import context\n": "from alembic import context\n\nimport cqrs\nfrom models import Base\n",
            "target_metadata = None\n": "target_metadata = [Base.metadata, cqrs.metadata]\n",
            "target_metadata=target_metadata": (
                "target_metadata=target_metadata, include_object=cqrs.migrations.include_object"
            ),
        },
    )
    messaging = project.revision("messaging")
    replaced(messaging, {"from alembic import op\n": "from alembic import op\nimport cqrs\n"})
    upgrade, downgrade, nothing_else = messaging.read_text().split("    pass\n")
    upgrade += "    cqrs.migrations.upgrade(op, to=1)\n"
    downgrade += "    cqrs.migrations.downgrade(op, to=0)\n"
    messaging.write_text(upgrade + downgrade + nothing_else)
    project.alembic("upgrade", "head")
    project.revision("articles", "--autogenerate")
    project.alembic("upgrade", "head")
    return project


def body(revision: Path) -> list[str]:
    """Return the statements of a revision's two functions."""
    functions = revision.read_text().partition("def upgrade")[2]
    lines = [line.strip() for line in functions.splitlines()[1:]]
    return [line for line in lines if line and not line.startswith(("#", '"""', "def "))]


def test_a_users_revision_makes_the_toolkits_tables(project: Project):
    assert project.tables() >= {*TABLES, "articles", "alembic_version"}


def test_autogenerate_takes_the_users_tables_and_leaves_the_toolkits_alone(project: Project):
    (articles,) = project.folder.glob("migrations/versions/*_articles.py")
    assert re.findall(r"op\.\w+\('(\w+)'", articles.read_text()) == ["articles", "articles"]


def test_a_users_project_has_one_head(project: Project):
    (head,) = project.alembic("heads").splitlines()
    assert head.endswith("(head)")


def test_autogenerate_in_a_users_project_finds_nothing_to_do(project: Project):
    assert "No new upgrade operations detected." in project.alembic("check")
    nothing = project.revision("nothing", "--autogenerate")
    assert body(nothing) == ["pass", "pass"]
    nothing.unlink()


def test_a_users_project_prints_the_sql(project: Project):
    script = project.alembic("upgrade", "head", "--sql")
    assert "CREATE TABLE cqrs_outbox" in script
    assert "INSERT INTO cqrs_settings (name, value) VALUES ('schema', '1');" in script


def test_an_application_starts_on_the_database_of_a_users_project(project: Project):
    (project.folder / "shop.py").write_text(ONE_SCRIPT.replace("new.db", "shop.db"))
    assert project.installed.python("shop.py", cwd=project.folder).splitlines() == ["placed tea", "receipt for tea"]
    assert "No new upgrade operations detected." in project.alembic("check")


def test_downgrade_in_a_users_project_removes_every_table_and_upgrade_brings_them_back(project: Project):
    project.alembic("downgrade", "base")
    assert project.tables() & {*TABLES, "articles"} == set()
    project.alembic("upgrade", "head")
    assert project.tables() >= {*TABLES, "articles"}


# The command line


@pytest.fixture(scope="module")
def with_extra(wheel: Path, installed: Installed) -> Installed:
    """The same environment with the extras of both kinds of starter project, and what tests them."""
    wanted = [f"{wheel}[cli,fastapi]", "httpx", "pytest", "pytest-asyncio", "uvicorn"]
    if UV:
        call(UV, "pip", "install", "--quiet", "--python", installed.programs / "python", *wanted, cwd=wheel.parent)
    else:
        call(installed.programs / "python", "-m", "pip", "install", "--quiet", *wanted, cwd=wheel.parent)
    return installed


def test_without_the_extra_the_program_says_what_to_install(installed: Installed, tmp_path: Path):
    command = [installed.programs / "cqrs", "--help"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=installed.environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "The command line needs libraries that are not installed: pip install 'cqrs-toolkit[cli]'\n"
    )


def words(command: str, environment: Installed) -> list[str]:
    """Return a command of the starter's with its program from the environment."""
    program, *arguments = command.split()
    return [str(environment.programs / program), *arguments]


def end_once_it_said(command: list[str], text: str, folder: Path, environment: Mapping[str, str]) -> int:
    """Run a program until it says something, and return what it ends with at SIGTERM."""
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if text in line:
                process.terminate()
        code = process.wait(timeout=60)
    assert any(text in line for line in said), "".join(said)
    return code


@pytest.mark.parametrize(
    ("kind", "says", "code"),
    [("worker", "'shop' relays as process", 0), ("fastapi", "Application startup complete", -15)],
)
def test_init_writes_a_project_whose_two_commands_work(
    with_extra: Installed, tmp_path: Path, kind: str, says: str, code: int
):
    environment = with_extra.environment | {"PYTHONWARNINGS": "default"}
    call(with_extra.programs / "cqrs", "init", "shop", "--kind", kind, cwd=tmp_path, env=environment)
    folder = tmp_path / "shop"
    printed = call(
        with_extra.programs / "cqrs",
        "init",
        "--json",
        "--kind",
        kind,
        "--name",
        "shop",
        "again",
        cwd=tmp_path,
        env=environment,
    )
    _, tests, runs = json.loads(printed)["commands"]  # the first one installs what is installed here
    assert "passed" in call(*words(tests, with_extra), cwd=folder, env=environment)
    assert end_once_it_said(words(runs, with_extra), says, folder, environment) == code
