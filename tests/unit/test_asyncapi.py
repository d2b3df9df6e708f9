from typing import Any

import pydantic
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema

import cqrs
from cqrs.asyncapi import asyncapi
from tests.unit.cli.support import run_json, shop
from tests.unit.conftest import WritePackage


class Line(pydantic.BaseModel):
    sku: str


class Placed(cqrs.Event):
    order_id: str
    lines: list[Line]


class Paid(cqrs.Event):
    order_id: str


class Pay(cqrs.Command[None]):
    order_id: str


def document(registry: cqrs.Registry, topic: str = "payments", **wishes: Any) -> dict[str, Any]:
    """Return the document of an application that is told of Placed and publishes Paid."""
    registry.integration_event(topic="orders", key="order_id")(Placed)
    registry.integration_event(topic=topic, name="order-paid")(Paid)

    @registry.command_handler
    async def pay(command: Pay, context: cqrs.Context) -> None:
        context.emit(Paid(order_id=command.order_id))

    @registry.event_handler
    async def bill(event: Placed) -> None: ...

    options = {"broker": "kafka://shop:secret@broker:9092", "database": "sqlite+aiosqlite:///app.db", **wishes}
    return asyncapi(cqrs.bootstrap(registry=registry, name="payments", **options))


def resolve(found: dict[str, Any], reference: str) -> Any:
    part: Any = found
    for name in reference.removeprefix("#/").split("/"):
        part = part[name.replace("~1", "/").replace("~0", "~")]
    return part


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [part["$ref"]] if "$ref" in part else [each for value in part.values() for each in references(value)]
    return [each for value in part for each in references(value)] if isinstance(part, list) else []


def test_it_is_a_document_as_faststream_reads_it(registry: cqrs.Registry):
    found = document(registry)
    found["servers"]["broker"]["pathname"] = ""  # which FastStream's own model wants
    ApplicationSchema.model_validate(found)


def test_it_tells_what_is_published_and_what_is_consumed(registry: cqrs.Registry):
    operations = document(registry)["operations"]
    assert {name: operation["action"] for name, operation in operations.items()} == {
        "consume.orders": "receive",
        "publish.payments": "send",
    }


def test_every_reference_leads_somewhere(registry: cqrs.Registry):
    found = document(registry, topic="payments/eu", broker="amqp://localhost")
    assert len(references(found)) >= 8
    assert all(resolve(found, reference) for reference in references(found))


def test_payloads_are_described_with_what_is_in_them(registry: cqrs.Registry):
    schemas = document(registry)["components"]["schemas"]
    assert schemas["Placed"]["properties"]["lines"]["items"] == {"$ref": "#/components/schemas/Placed.Line"}
    assert schemas["Placed.Line"]["required"] == ["sku"]


def test_headers_and_key_are_described(registry: cqrs.Registry):
    message = document(registry)["components"]["messages"]["Placed"]
    assert message["headers"]["properties"]["ce_type"] == {"const": "Placed"}
    assert "correlation_id" in message["headers"]["required"]
    assert message["bindings"]["kafka"]["key"]["description"] == "order_id, as text"


def test_the_server_is_told_without_its_login(registry: cqrs.Registry):
    found = document(registry)
    assert found["servers"] == {"broker": {"host": "broker:9092", "protocol": "kafka"}}
    assert "secret" not in repr(found)


def test_an_application_without_published_events_has_an_empty_document(registry: cqrs.Registry):
    assert asyncapi(cqrs.bootstrap(registry=registry, name="shop")).keys() == {
        "asyncapi",
        "info",
        "defaultContentType",
        "components",
    }


def test_the_command_prints_it_with_the_version_that_is_asked_for(package: WritePackage, database: str):
    target = f"{package(shop(database, 'broker=' + repr('amqp://localhost')))}.main:app"
    found = run_json("asyncapi", target, "--app-version", "2.0.0")
    assert found["info"] == {"title": "shop", "version": "2.0.0"}
    assert found["operations"].keys() == {"publish.orders", "consume.orders"}
    assert run_json("asyncapi", target)["info"]["version"] == "1.0.0"
