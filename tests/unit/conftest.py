import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import cqrs

_numbers = itertools.count(1)

WritePackage = Callable[[Mapping[str, str]], str]


@pytest.fixture
def registry() -> cqrs.Registry:
    return cqrs.Registry()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"


@pytest.fixture
def own_registrations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hide, for a test, what other modules wrote into the default registry when tests of theirs were collected."""
    registry, own = cqrs.default_registry, request.module.__name__
    handlers, publications = list(registry.handlers), dict(registry.publications)
    registry.handlers[:] = [record for record in handlers if record.module == own]
    hidden = [event for event in publications if event.__module__ != own]
    for event in hidden:
        del registry.publications[event]
    yield
    registry.handlers[:] = handlers
    registry.publications.clear()
    registry.publications.update(publications)


@pytest.fixture
def fresh_modules() -> Iterator[None]:
    """Forget, afterwards, the modules that a test imports and what they wrote into the default registry."""
    modules = set(sys.modules)
    handlers = list(cqrs.default_registry.handlers)
    publications = dict(cqrs.default_registry.publications)
    yield
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) is None or name.startswith("shop"):
            del sys.modules[name]
    cqrs.default_registry.handlers[:] = handlers
    cqrs.default_registry.publications.clear()
    cqrs.default_registry.publications.update(publications)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_modules: None) -> WritePackage:
    """Write a package of the given files (`{"orders.py": source}`) where it can be imported, and return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(files: Mapping[str, str]) -> str:
        name = f"shop{next(_numbers)}"
        for path, source in {"__init__.py": "", **files}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return name

    return write
