import subprocess
import sys
from pathlib import Path

import pytest

import cqrs
from tests.unit.cli.support import run

ROOT = Path(cqrs.__file__).parents[1]
HEAVY = ["alembic", "asyncio", "pydantic", "rich", "sqlalchemy"]


def python(source: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_loads_nothing_heavy():
    source = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
from cqrs.__main__ import main
sys.argv = ["cqrs", "--help"]
main()
"""
    assert python(source).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_the_extra_a_sentence_says_what_to_install(library: str):
    source = f"""
import importlib.util, sys
from cqrs import __main__ as program

program.find_spec = lambda name: None if name == "{library}" else importlib.util.find_spec(name)
program.main()
"""
    done = python(source)
    assert done.stderr == ("The command line needs libraries that are not installed: pip install 'cqrs-toolkit[cli]'\n")
    assert done.returncode == 1


def test_the_version_is_that_of_the_distribution():
    assert run("--version").stdout.startswith("cqrs 0.")


def test_python_runs_the_package_as_the_program():
    done = subprocess.run([sys.executable, "-m", "cqrs", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_completion_is_clicks_own():
    environment = {"_CQRS_COMPLETE": "bash_complete", "COMP_WORDS": "cqrs exp", "COMP_CWORD": "1"}
    assert run(env=environment).stdout == "plain,explain\n"
