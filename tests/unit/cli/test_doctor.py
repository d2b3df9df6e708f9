import logging
from importlib import metadata
from typing import Any

import pytest

from cqrs.cli import doctor
from tests.unit.cli.support import run, run_json, shop
from tests.unit.conftest import WritePackage


def findings(*arguments: object, code: int = 0) -> dict[str, tuple[str, str]]:
    found = run_json("doctor", *arguments, code=code)["findings"]
    return {finding["what"]: (finding["state"], finding["detail"]) for finding in found}


def test_it_tells_versions_and_finds_nothing_wrong():
    found = run_json("doctor")
    assert found["versions"]["cqrs-toolkit"] == metadata.version("cqrs-toolkit")
    assert found["versions"].keys() >= {"python", "pydantic", "sqlalchemy"}
    assert [finding["state"] for finding in found["findings"]] == ["ok", "ok"]
    assert "CHECK    STATE  DETAIL" in run("doctor").stdout


def test_another_distribution_of_the_same_package_is_a_clash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "owners", lambda: ["cqrs-toolkit", "python-cqrs"])
    state, detail = findings(code=1)["clash"]
    assert state == "failed"
    assert detail == (
        "python-cqrs also installs a package 'cqrs': "
        "pip uninstall python-cqrs, then pip install --force-reinstall cqrs-toolkit"
    )


def test_owners_are_read_from_what_is_installed(monkeypatch: pytest.MonkeyPatch):
    def packages() -> dict[str, list[str]]:
        return {"cqrs": ["python-cqrs", "cqrs-toolkit", "cqrs-toolkit"], "click": ["click"]}

    monkeypatch.setattr(metadata, "packages_distributions", packages)
    assert doctor.owners() == ["cqrs-toolkit", "python-cqrs"]


def test_tables_that_the_start_makes_are_not_missed(package: WritePackage, database: str):
    found = findings(f"{package(shop(database))}.main:app")
    assert found["database"][0] == "ok"
    assert found["schema"] == ("unused", "there are no tables yet: the start makes them")
    assert found["broker"] == ("unused", "events are delivered here")


def test_tables_that_are_there_are_looked_at_with_the_lag(package: WritePackage, database: str):
    run("db", "upgrade", "--url", database)
    found = findings(f"{package(shop(database))}.main:app")
    assert found["schema"] == ("ok", "number 1")
    assert found["lag"][0] == "ok"


@pytest.mark.parametrize(
    ("options", "failed"),
    [("broker='kafka://127.0.0.1:1'", "broker"), ("broker='amqp://127.0.0.1:1'", "broker")],
)
def test_a_broker_out_of_reach_is_a_finding(package: WritePackage, database: str, options: str, failed: str):
    found = findings(f"{package(shop(database, options))}.main:app", code=1)
    assert found[failed][0] == "failed"


def test_a_database_out_of_reach_is_a_finding_without_its_password(package: WritePackage):
    target = f"{package(shop('postgresql+asyncpg://shop:secret@127.0.0.1:1/shop'))}.main:app"
    done = run("doctor", target, code=1)
    assert "postgresql+asyncpg://shop:***@127.0.0.1:1/shop cannot be connected to" in done.stdout
    assert "secret" not in done.output


def test_logging_is_as_it_was_afterwards(package: WritePackage, database: str):
    before: Any = logging.root.manager.disable
    run("doctor", f"{package(shop(database))}.main:app")
    assert logging.root.manager.disable == before


def test_an_application_without_a_database_has_nothing_more_to_look_at(package: WritePackage):
    name = package({"main.py": "import cqrs\n\napp = cqrs.bootstrap(registry=cqrs.Registry(), name='shop')\n"})
    assert findings(f"{name}.main:app")["database"] == ("unused", "the application has none")
