import pytest

import cqrs
from cqrs.outbox import schema_check
from tests.unit.outbox.shop import Shop, Start
from tests.unit.outbox.support import run_sql


async def test_a_file_that_does_not_exist_is_made_and_migrated(shop: Shop):
    async with shop.app():
        pass
    tables = await run_sql(shop.database, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'cqrs%'")
    assert {"cqrs_outbox", "cqrs_parked", "cqrs_inbox", "cqrs_slot", "cqrs_settings"} <= set(tables)


async def test_a_database_with_tables_of_the_users_is_migrated(shop: Shop):
    await run_sql(shop.database, "CREATE TABLE items (name TEXT)", "INSERT INTO items VALUES ('tea')")
    async with shop.app() as app:
        await app.send(Start(orders=["o1"]))
        await app.drain()
    assert await run_sql(shop.database, "SELECT name FROM items") == ["tea"]


async def test_a_schema_that_is_behind_is_refused_with_the_command_to_run(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    async with shop.app():
        pass
    monkeypatch.setattr(schema_check, "VERSION", 2)
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app().__aenter__()
    assert str(caught.value) == (
        f"{shop.database} has schema number 1, and this version needs number 2. Add "
        "`cqrs.migrations.upgrade(op, to=2)` to a revision of your Alembic project and run `alembic upgrade head`; "
        "without Alembic, run `cqrs db upgrade MODULE:APP`, or pass migrate=True to bootstrap."
    )


async def test_the_command_to_run_has_the_prefix_of_the_application(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    async with shop.app(prefix="shop_"):
        pass
    monkeypatch.setattr(schema_check, "VERSION", 2)
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app(prefix="shop_").__aenter__()
    assert str(caught.value).startswith(
        f"{shop.database} (prefix='shop_') has schema number 1, and this version needs number 2. "
        "Add `cqrs.migrations.upgrade(op, to=2, prefix='shop_')` to a revision"
    )


async def test_a_schema_that_is_ahead_is_refused_with_the_command_to_run(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'")
    with pytest.raises(cqrs.SchemaError) as caught:
        await shop.app().__aenter__()
    assert str(caught.value) == (
        f"{shop.database} has schema number 99, and this version of cqrs-toolkit knows 1: the database was upgraded "
        "for a newer version. Run `pip install --upgrade cqrs-toolkit`."
    )


async def test_a_schema_that_is_ahead_is_not_migrated_on_request_either(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "UPDATE cqrs_settings SET value = '99' WHERE name = 'schema'")
    with pytest.raises(cqrs.SchemaError):
        await shop.app(migrate=True).__aenter__()
    assert await run_sql(shop.database, "SELECT value FROM cqrs_settings WHERE name = 'schema'") == ["99"]


async def test_tables_that_do_not_tell_their_number_are_refused(shop: Shop):
    async with shop.app():
        pass
    await run_sql(shop.database, "DELETE FROM cqrs_settings WHERE name = 'schema'")
    with pytest.raises(cqrs.SchemaError):
        async with shop.app():
            pass
