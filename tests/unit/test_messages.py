from typing import Any

import pydantic
import pytest

import cqrs


class PlaceOrder(cqrs.Command[int]):
    sku: str
    quantity: int


class GetOrder(cqrs.Query[str]):
    order_id: str


def test_a_command_cannot_be_changed():
    command = PlaceOrder(sku="tea", quantity=2)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        command.sku = "coffee"


def test_equal_commands_are_equal_and_hash_alike():
    assert {PlaceOrder(sku="tea", quantity=2)} == {PlaceOrder(sku="tea", quantity=2)}


def test_a_wrong_type_in_a_message_is_pydantics_own_error():
    with pytest.raises(pydantic.ValidationError) as caught:
        PlaceOrder(sku="tea", quantity="two")
    assert caught.value.errors()[0]["loc"] == ("quantity",)


@pytest.mark.parametrize("kind", [PlaceOrder, GetOrder])
def test_commands_and_queries_are_requests(kind: type):
    assert issubclass(kind, cqrs.Request)


def test_a_request_is_no_event():
    assert not issubclass(cqrs.Request, cqrs.Event)


def test_a_command_without_a_reply_type_can_be_written_bare():
    class Restart(cqrs.Command):
        pass

    assert Restart() == Restart()


def test_a_generic_command_keeps_the_parameter_of_each_use():
    assert cqrs.Command[int] is cqrs.Command[int]
    assert cqrs.Command[int] is not cqrs.Command[str]


def test_a_replys_fields_are_reached_as_a_dict():
    class Created(cqrs.Response):
        user_id: str
        roles: list[str] = pydantic.Field(default_factory=list)

    assert Created(user_id="u1").data == {"user_id": "u1", "roles": []}


def test_a_reply_may_have_a_field_named_data():
    class Raw(cqrs.Response):
        data: Any
        other: int = 0

    assert Raw(data="bytes").data == "bytes"


def test_a_reply_has_no_attribute_that_nobody_declared():
    class Created(cqrs.Response):
        user_id: str

    with pytest.raises(AttributeError, match="'Created' object has no attribute 'user'"):
        Created(user_id="u1").user  # noqa: B018 - the access is what is tested


def test_a_reply_may_keep_private_attributes():
    class Counted(cqrs.Response):
        total: int
        _seen: int = pydantic.PrivateAttr(default=3)

    assert Counted(total=1)._seen == 3
    assert Counted(total=1).data == {"total": 1}
