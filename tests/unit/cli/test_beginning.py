import os
import subprocess
import sys
from pathlib import Path

import pytest

import cqrs
from tests.unit.cli.support import run, run_json

ROOT = Path(cqrs.__file__).parents[1]


@pytest.mark.parametrize("kind", ["worker", pytest.param("fastapi", marks=pytest.mark.slow)])
def test_a_project_passes_its_own_tests(tmp_path: Path, kind: str):
    folder = tmp_path / "my-shop"
    found = run_json("init", folder, "--kind", kind)
    assert all((folder / file).is_file() for file in found["files"])
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stdout


def test_a_project_places_an_order_that_gets_its_receipt(tmp_path: Path):
    run("init", tmp_path / "my-shop")
    command = [sys.executable, "-W", "error", "-m", "my_shop", "coffee"]
    done = subprocess.run(
        command, cwd=tmp_path / "my-shop", capture_output=True, text=True, check=False, env=environment()
    )
    assert (done.returncode, done.stdout[:6]) == (0, "Order "), done.stderr
    assert done.stderr == f"Receipt for order {done.stdout.split()[1]}: 1 x coffee\n"


@pytest.mark.parametrize("kind", ["worker", "fastapi"])
def test_the_readme_says_how_to_order_and_how_to_go_to_servers(tmp_path: Path, kind: str):
    run("init", tmp_path / "shop", "--kind", kind)
    text = (tmp_path / "shop" / "README.md").read_text()
    assert ("python -m shop tea" in text, "localhost:8000/orders" in text) == (kind == "worker", kind == "fastapi")
    assert "    cqrs db upgrade shop.main:app\n" in text


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "BROKER_URL")} | {
        "PYTHONPATH": str(ROOT)
    }


@pytest.mark.parametrize("kind", ["worker", "fastapi"])
def test_a_project_is_formatted_and_linted(tmp_path: Path, kind: str):
    run("init", tmp_path / "shop", "--kind", kind)
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed here")
    for command in (
        [ruff, "format", "--check", "--isolated", "."],
        [ruff, "check", "--isolated", "--select=B,E,F,I", "."],
    ):
        done = subprocess.run([*map(str, command)], cwd=tmp_path / "shop", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_commands_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run("init", "my-shop").stdout.splitlines()[-5:] == [
        "Next:",
        "  cd my-shop",
        "  pip install 'cqrs-toolkit[cli]' pytest pytest-asyncio",
        "  python -m pytest",
        "  cqrs run my_shop.main:app",
    ]


def test_the_current_folder_gives_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "orders" / ".git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "orders")
    assert run_json("init", "--kind", "fastapi")["commands"] == [
        "pip install 'cqrs-toolkit[cli,fastapi]' uvicorn httpx pytest pytest-asyncio",
        "python -m pytest",
        "uvicorn orders.api:api",
    ]


def test_a_folder_with_files_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    error = run("init", tmp_path, code=1).stderr
    assert error == f"Error: {tmp_path} is not empty: it has notes.txt. Name an empty or a new folder.\n"
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["3shops", "class", "json", "cqrs", "tests", "a.b"])
def test_a_name_that_cannot_be_a_package_is_refused(tmp_path: Path, name: str):
    assert "--name shop" in run("init", tmp_path, "--name", name, code=2).stderr
