import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cqrs
from cqrs.scan import scan, script_name
from tests.unit.support import problems

HANDLER = """
import cqrs

class Ping(cqrs.Command[str]):
    pass

@cqrs.command_handler
async def ping(command: Ping) -> str:
    return "pong"
"""


def scanned(*paths: str, exclude: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Return the names of the modules that were imported, and the texts of the problems."""
    found: list[cqrs.Problem] = []
    names = scan(paths, found, exclude)
    return names, [str(problem) for problem in found]


def folder_of(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_every_module_of_a_package_is_imported(package: Any):
    name = package({"orders.py": "", "stock/__init__.py": "", "stock/shelves.py": "", "stock/deep/__init__.py": ""})
    expected = [name, f"{name}.orders", f"{name}.stock", f"{name}.stock.deep", f"{name}.stock.shelves"]
    assert scanned(name) == (expected, [])
    assert set(expected) <= set(sys.modules)


def test_a_single_module_is_imported(package: Any):
    name = package({"orders.py": "", "stock.py": ""})
    assert scanned(f"{name}.orders") == ([f"{name}.orders"], [])
    assert f"{name}.stock" not in sys.modules


def test_several_paths_are_imported_in_their_order(package: Any):
    one, other = package({}), package({})
    assert scanned(other, one) == ([other, one], [])


def test_a_module_that_two_paths_reach_is_named_once(package: Any):
    name = package({"orders.py": ""})
    assert scanned(f"{name}.orders", name) == ([f"{name}.orders", name], [])


def test_what_runs_a_package_and_private_files_are_left_alone(package: Any):
    name = package({"__main__.py": "raise SystemExit", ".hidden.py": "boom", "not-a-name.py": "boom", "notes.txt": ""})
    assert scanned(name) == ([name], [])


def test_modules_with_a_single_underscore_are_imported(package: Any):
    name = package({"_handlers.py": ""})
    assert scanned(name) == ([name, f"{name}._handlers"], [])


@pytest.mark.parametrize("excluded", ["stock", "stock.shelves"])
def test_excluded_modules_are_not_imported(package: Any, excluded: str):
    name = package({"orders.py": "", "stock/__init__.py": "", "stock/shelves.py": "raise ValueError", "stocks.py": ""})
    names, found = scanned(name, exclude=(f"{name}.{excluded}",))
    assert f"{name}.stock.shelves" not in names
    assert f"{name}.stocks" in names
    assert (f"{name}.stock" in names) == (excluded != "stock")
    assert found == []


def test_a_namespace_package_is_scanned_too(package: Any):
    name = package({"orders.py": ""})
    (folder_of(name) / "__init__.py").unlink()
    importlib.invalidate_caches()
    assert scanned(name) == ([f"{name}.orders"], [])


# What is wrong with a scan


def test_a_package_that_is_not_there_is_reported_with_the_paths_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", ["here", "there"])
    assert scanned("shop_that_is_nowhere") == (
        [],
        [
            (
                "There is no package 'shop_that_is_nowhere' to scan; looked in here, there, .... "
                "Give the dotted name of a package that can be imported from here."
            )
        ],
    )


def test_a_package_below_one_that_is_not_there_is_reported_with_the_reason():
    names, (problem,) = scanned("shop_that_is_nowhere.orders")
    assert names == []
    assert problem.startswith(
        "There is no package 'shop_that_is_nowhere.orders' to scan: "
        "ModuleNotFoundError: No module named 'shop_that_is_nowhere'; looked in "
    )


@pytest.mark.parametrize(
    ("path", "dotted"), [("shop.py", "shop"), ("./shop", "shop"), ("shop/orders.py", "shop.orders"), ("shop/", "shop")]
)
def test_the_path_of_a_file_is_reported_with_the_name_that_was_meant(path: str, dotted: str):
    assert scanned(path) == (
        [],
        [f"'{path}' is the path of a file, and scan takes dotted names. Pass '{dotted}'."],
    )


def test_a_url_in_place_of_a_package_is_reported_without_its_password():
    assert scanned("postgresql+asyncpg://me:secret@db/shop") == (
        [],
        [
            (
                "A URL, postgresql+asyncpg://, is where the name of a package to scan belongs. "
                "Pass it as database= or broker=."
            )
        ],
    )


@pytest.mark.parametrize("path", ["", ".orders"])
def test_a_path_that_is_no_dotted_name_is_reported(path: str):
    names, (problem,) = scanned(path)
    assert names == []
    assert problem.startswith(f"There is no package '{path}' to scan")


def test_a_package_whose_parent_fails_to_import_is_reported(package: Any):
    name = package({"__init__.py": "raise RuntimeError('no')", "orders.py": ""})
    names, (problem,) = scanned(f"{name}.orders")
    assert names == []
    assert "RuntimeError: no" in problem


def test_a_module_that_fails_to_import_is_reported_with_its_traceback(package: Any):
    name = package({"broken.py": "def load():\n    raise ValueError('no such file')\n\nload()\n", "orders.py": ""})
    file = folder_of(name) / "broken.py"
    names, (problem,) = scanned(name)
    assert names == [name, f"{name}.orders"]
    assert problem.startswith(
        f"Module {name}.broken cannot be imported ({file}). Mend it, or leave the module out with exclude=(...).\n"
        f'Traceback (most recent call last):\n  File "{file}", line 4, in <module>\n'
    )
    assert problem.endswith("ValueError: no such file")
    assert "importlib" not in problem


def test_a_syntax_error_is_reported(package: Any):
    name = package({"broken.py": "def load(:\n"})
    _, (problem,) = scanned(name)
    assert problem.startswith(f"Module {name}.broken cannot be imported ")
    assert "SyntaxError" in problem


def test_every_module_that_fails_to_import_is_reported(package: Any):
    name = package({"a.py": "raise ValueError('a')", "b.py": "import nothing_like_it", "c.py": ""})
    names, found = scanned(name)
    assert names == [name, f"{name}.c"]
    assert len(found) == 2
    assert "ValueError: a" in found[0]
    assert "ModuleNotFoundError: No module named 'nothing_like_it'" in found[1]


def test_a_module_that_ends_the_program_is_reported(package: Any):
    name = package({"script.py": "import sys\nsys.exit(3)\n"})
    _, (problem,) = scanned(name)
    assert problem.startswith(f"Module {name}.script cannot be imported ")
    assert "SystemExit: 3" in problem


def test_a_folder_without_init_is_reported(package: Any):
    name = package({"stock/shelves.py": ""})
    assert scanned(name) == (
        [name],
        [
            (
                f"The folder {folder_of(name) / 'stock'} has modules, but no __init__.py, and was skipped. "
                f"Add an empty __init__.py, or pass exclude=('{name}.stock',) to bootstrap."
            )
        ],
    )


def test_a_folder_without_init_that_is_excluded_is_no_problem(package: Any):
    name = package({"stock/shelves.py": ""})
    assert scanned(name, exclude=(f"{name}.stock",)) == ([name], [])


def test_a_folder_without_modules_is_no_problem(package: Any):
    name = package({"templates/page.html": "", "empty/.keep": ""})
    assert scanned(name) == ([name], [])


def test_a_file_that_is_loaded_under_two_names_is_reported(package: Any, monkeypatch: pytest.MonkeyPatch):
    name = package({"shop_orders.py": ""})
    folder = folder_of(name)
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("shop_orders")
    assert scanned(name) == (
        [name],
        [
            (
                f"{folder / 'shop_orders.py'} is loaded under two names, 'shop_orders' and '{name}.shop_orders'. "
                "Import it by one name everywhere, and start a module of a package with `python -m package.module`."
            )
        ],
    )


def test_a_scan_that_found_no_handler_is_reported(package: Any):
    name = package({"orders.py": ""})
    assert problems(name) == [
        (
            f"Scanning '{name}' found no handler; imported: {name}, {name}.orders. "
            "Decorate handlers with @cqrs.command_handler, query_handler or event_handler in one of its modules."
        )
    ]


def test_a_scan_that_found_no_module_is_reported(package: Any):
    name = package({})
    (folder_of(name) / "__init__.py").unlink()
    importlib.invalidate_caches()
    (problem,) = problems(name)
    assert problem.startswith(f"Scanning '{name}' found no handler; imported: no module at all. ")


def test_problems_of_a_scan_and_of_handlers_come_together(package: Any):
    name = package({"broken.py": "raise ValueError", "orders.py": HANDLER.replace("command: Ping", "command")})
    first, second, third = sorted(problems(name))
    assert first.startswith(f"Module {name}.broken cannot be imported")
    assert second.startswith(f"{name}.orders.Ping has no handler")
    assert third.startswith(f"{name}.orders.ping: its first parameter 'command' has no annotation")


# The running script


def run(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(cqrs.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments] if arguments else [sys.executable, str(file)],
        cwd=file.parent,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )


SCRIPT = """
import asyncio
import cqrs

class Ping(cqrs.Command[str]):
    pass

@cqrs.command_handler
async def ping(command: Ping) -> str:
    return "pong"

if __name__ == "__main__":
    app = cqrs.bootstrap(SCAN)
    (handler,) = app.plans[Ping].handlers
    print(app.name, handler.name, asyncio.run(app.send(Ping())))
"""


@pytest.mark.parametrize("scan_argument", ["", '"orders"'])
def test_a_script_goes_by_its_files_name_also_when_it_scans_itself(tmp_path: Path, scan_argument: str):
    file = tmp_path / "orders.py"
    file.write_text(SCRIPT.replace("SCAN", scan_argument))
    done = run(file)
    assert done.stderr == ""
    assert done.stdout == "orders orders:ping pong\n"


def test_a_module_that_is_run_with_m_goes_by_its_path(tmp_path: Path):
    (tmp_path / "depot").mkdir()
    (tmp_path / "depot" / "__init__.py").write_text("")
    (tmp_path / "depot" / "orders.py").write_text(SCRIPT.replace("SCAN", ""))
    done = run(tmp_path / "x", "-m", "depot.orders")
    assert done.stderr == ""
    assert done.stdout == "depot depot.orders:ping pong\n"


def test_a_package_that_is_run_goes_by_its_name(monkeypatch: pytest.MonkeyPatch):
    import importlib.machinery
    import types

    main = types.ModuleType("__main__")
    main.__spec__ = importlib.machinery.ModuleSpec("shop.__main__", None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert script_name() == "shop"


def test_an_interactive_session_has_no_other_name(monkeypatch: pytest.MonkeyPatch):
    import types

    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert script_name() == "__main__"
