import subprocess
import sys
from pathlib import Path

import pytest

import cqrs

NAMES = [
    "Call",
    "Command",
    "CommitUnknown",
    "ConfigurationError",
    "Context",
    "CqrsError",
    "DatabaseUnreachable",
    "DecodingError",
    "DrainTimeout",
    "EncodingError",
    "Envelope",
    "Event",
    "EventCycle",
    "EventHandler",
    "EventMediator",
    "Failed",
    "Fate",
    "ForeignTask",
    "Mediator",
    "Middleware",
    "MisuseError",
    "NotHandled",
    "NotOpen",
    "NotificationEvent",
    "OutsideHandler",
    "Problem",
    "PublishError",
    "Publisher",
    "Query",
    "QueryViolation",
    "Registry",
    "Request",
    "RequestHandler",
    "RequestMediator",
    "Response",
    "Retry",
    "SchemaError",
    "TransactionMisuse",
    "Unavailable",
    "bootstrap",
    "command_handler",
    "current_session",
    "default_registry",
    "event_handler",
    "events",
    "integration_event",
    "metadata",
    "migrations",
    "query_handler",
]

HEAVY = ["aio_pika", "aiokafka", "alembic", "dependency_injector", "fastapi", "faststream", "sqlalchemy"]


def python(source: str) -> str:
    """Run a program in a fresh interpreter; returns what it printed."""
    root = Path(cqrs.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", source], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_public_names_are_these():
    assert cqrs.__all__ == NAMES


def test_the_public_names_are_sorted():
    assert cqrs.__all__ == sorted(cqrs.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there(name: str):
    assert getattr(cqrs, name) is not None


def test_a_star_import_gives_every_public_name():
    namespace: dict[str, object] = {}
    exec("from cqrs import *", namespace)
    assert set(NAMES) <= set(namespace)


def test_every_error_is_a_cqrs_error():
    errors = [kind for kind in vars(cqrs.errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(errors) > 10
    assert all(issubclass(kind, cqrs.CqrsError) and kind.__name__ in NAMES for kind in errors)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cqrs' has no attribute 'nonsense'"):
        cqrs.nonsense  # noqa: B018 - the access is what is tested


def test_importing_cqrs_loads_nothing_heavy():
    source = f"import sys, cqrs; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(source) == "[]"


def test_an_application_without_a_database_loads_nothing_heavy():
    source = f"""
import asyncio, sys, cqrs

class Ping(cqrs.Command[str]):
    pass

@cqrs.command_handler
async def ping(command: Ping, context: cqrs.Context) -> str:
    return "pong"

asyncio.run(cqrs.bootstrap().send(Ping()))
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert python(source) == "[]"


def test_importing_cqrs_configures_no_logging():
    source = (
        "import logging, cqrs; log = logging.getLogger('cqrs'); print(log.level, log.handlers, logging.root.handlers)"
    )
    assert python(source) == "0 [] []"


def test_the_package_says_that_it_is_typed():
    assert (Path(cqrs.__file__).parent / "py.typed").is_file()
