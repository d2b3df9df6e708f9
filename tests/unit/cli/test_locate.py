"""Whoever names no application hears so in a sentence, and what to write instead."""

import sys
from pathlib import Path

import pytest

import cqrs
from cqrs.cli.exits import NoApplication
from cqrs.cli.locate import load
from tests.unit.conftest import WritePackage

APP = "import cqrs\n\napp = cqrs.bootstrap(registry=cqrs.Registry(), name='shop')\n"


@pytest.fixture(autouse=True)
def unchanged_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def told(target: str, *, factory: bool = False) -> str:
    with pytest.raises(NoApplication) as caught:
        load(target, factory=factory)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_an_application_is_found_by_its_module_and_attribute(package: WritePackage):
    assert load(f"{package({'main.py': APP})}.main:app").name == "shop"


def test_an_attribute_may_be_a_path(package: WritePackage):
    name = package({"main.py": f"{APP}\nclass Services:\n    shop = app\n"})
    assert load(f"{name}.main:Services.shop").name == "shop"


def test_a_module_is_looked_for_in_the_folder_that_is_named(tmp_path: Path, fresh_modules: None):
    (tmp_path / "shop_of_a_folder.py").write_text(APP)
    assert load("shop_of_a_folder:app", folder=tmp_path).name == "shop"


def test_a_factory_is_called(package: WritePackage):
    name = package({"main.py": APP + "\ndef make():\n    return app\n"})
    assert load(f"{name}.main:make", factory=True).name == "shop"


@pytest.mark.parametrize("target", ["", "shop", "shop:", ":app", "shop/main.py"])
def test_a_target_without_module_or_attribute_is_refused(target: str):
    assert told(target) == f"'{target}' names no application. Write MODULE:APP, for example shop.main:app."


def test_a_module_that_is_not_there_is_named_with_the_folder():
    assert told("nothing.here:app") == (
        f"There is no module 'nothing.here': looked in {Path.cwd()} and in what is installed."
    )


def test_an_attribute_that_is_not_there_is_named_with_what_is(package: WritePackage):
    name = package({"main.py": APP})
    assert told(f"{name}.main:application") == f"'{name}.main' has no 'application'. It has the application 'app'."


def test_a_module_that_the_users_module_lacks_is_told_with_its_line(package: WritePackage, tmp_path: Path):
    name = package({"main.py": "\nimport nothing_of_that_name\n"})
    place = tmp_path / name / "main.py"
    assert told(f"{name}.main:app") == (
        f"Importing '{name}.main' failed: ModuleNotFoundError: No module named 'nothing_of_that_name' ({place}:2)."
    )


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit\n", "SystemExit"),
        ("def\n", "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(
    package: WritePackage, tmp_path: Path, source: str, error: str
):
    name = package({"main.py": source})
    assert told(f"{name}.main:app") == f"Importing '{name}.main' failed: {error} ({tmp_path / name / 'main.py'}:1)."


def test_a_thing_that_is_no_application_is_refused(package: WritePackage):
    name = package({"main.py": "app = 'shop'\n"})
    assert told(f"{name}.main:app") == (
        f"'{name}.main:app' is a builtins.str, and no application that cqrs.bootstrap returned."
    )


def test_a_factory_that_is_not_called_is_refused_with_the_option(package: WritePackage):
    name = package({"main.py": APP + "\ndef make():\n    return app\n"})
    assert told(f"{name}.main:make") == (
        f"'{name}.main:make' is a function, and no application that cqrs.bootstrap returned. "
        "If it returns one, pass --factory."
    )


def test_a_factory_that_wants_arguments_is_refused(package: WritePackage):
    name = package({"main.py": "def make(database, *, broker, slots=16): ...\n"})
    assert told(f"{name}.main:make", factory=True) == (
        f"'{name}.main:make' wants database, broker. A factory is called without arguments."
    )


def test_an_application_is_not_called_as_a_factory(package: WritePackage):
    name = package({"main.py": APP})
    assert told(f"{name}.main:app", factory=True) == (
        f"'{name}.main:app' is a Mediator and cannot be called. Leave out --factory."
    )


def test_a_factory_that_fails_is_told_with_its_line(package: WritePackage, tmp_path: Path):
    name = package({"main.py": "def make():\n    raise KeyError('DATABASE_URL')\n"})
    assert told(f"{name}.main:make", factory=True) == (
        f"Calling '{name}.main:make' failed: KeyError: 'DATABASE_URL' ({tmp_path / name / 'main.py'}:2)."
    )


def test_wrong_wiring_passes_through(package: WritePackage):
    name = package({"main.py": "import cqrs\n\napp = cqrs.bootstrap(registry=cqrs.Registry(), slots=0)\n"})
    with pytest.raises(cqrs.ConfigurationError):
        load(f"{name}.main:app")


@pytest.mark.parametrize(("path", "dotted"), [("shop.py", "shop"), ("./shop", "shop"), ("shop/main.py", "shop.main")])
def test_the_path_of_a_file_is_told_by_the_name_that_was_meant(path: str, dotted: str):
    assert told(f"{path}:app") == f"'{path}' is the path of a file. Write {dotted}:app."
