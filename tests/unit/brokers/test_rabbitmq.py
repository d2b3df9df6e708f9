import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from pamqp.commands import Basic

import cqrs
from cqrs.brokers import rabbitmq
from cqrs.brokers.confirms import End, Letter, Outlet
from cqrs.brokers.rabbitmq import RabbitMQ
from cqrs.codec import headers_text
from cqrs.outbox import Failed, Fate, Unavailable
from tests.contract.publisher import letter, letters, shape

Send = Callable[["FakeChannel", list[Letter], list[End]], Any]


class FakeChannel:
    def __init__(self, connection: "FakeConnection") -> None:
        self.connection = connection
        self.closing = asyncio.get_running_loop().create_future()
        self.declared: list[tuple[str, bool]] = []

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def exchange_declare(self, name: str, *, exchange_type: str, durable: bool, passive: bool) -> None:
        assert (exchange_type, durable) == ("topic", True)
        self.declared.append((name, passive))
        if self.connection.declare_error is not None:
            raise self.connection.declare_error

    def fail(self, error: BaseException) -> None:
        self.closing.set_exception(error)
        self.closing.exception()

    async def close(self) -> None:
        if not self.closing.done():
            self.closing.set_result(None)


class FakeConnection:
    def __init__(self) -> None:
        self.is_closed = False
        self.channels: list[FakeChannel] = []
        self.declare_error: BaseException | None = None

    async def channel(self, **options: Any) -> FakeChannel:
        assert options == {"publisher_confirms": True, "on_return_raises": True}
        self.channels.append(FakeChannel(self))
        return self.channels[-1]

    async def close(self) -> None:
        self.is_closed = True


class Broker:
    """The far end: what `connect` and `send` do."""

    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.rounds: list[list[str]] = []
        self.send: Send = self.take
        self.connect_error: BaseException | None = None
        self.declare_error: BaseException | None = None

    @staticmethod
    def take(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        ends[:] = [Fate.DELIVERED] * len(sent)

    async def connect(self, url: Any, *, context: Any) -> FakeConnection:
        if self.connect_error is not None:
            raise self.connect_error
        connection = FakeConnection()
        connection.declare_error = self.declare_error
        self.connections.append(connection)
        return connection

    async def publish(self, outlet: Outlet, sent: list[Letter], ends: list[End]) -> None:
        self.rounds.append([str(found.properties.message_id) for found in sent])
        waiting = self.send(outlet.channel, sent, ends)
        if waiting is not None:
            await waiting


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    found = Broker()
    monkeypatch.setattr("aiormq.connect", found.connect)
    monkeypatch.setattr(rabbitmq, "send", found.publish)
    return found


async def publish(envelopes: list[cqrs.Envelope], **options: Any) -> list[Any]:
    publisher = RabbitMQ("amqp://me:hush@one/", **{"timeout": 0.2, **options})
    await publisher.open()
    outcomes = await publisher.publish(envelopes)
    await publisher.close()
    return outcomes


async def test_a_round_has_one_message_of_each_key(broker: Broker):
    batch = [*letters("123", "a"), *letters("45", "b"), *letters("67", None)]
    assert await publish(batch) == [Fate.DELIVERED] * 7
    assert broker.rounds == [["1", "4", "6", "7"], ["2", "5"], ["3"]]


async def test_a_round_is_no_larger_than_the_window(broker: Broker):
    batch = [letter(f"{key}{number}", key) for number in range(2) for key in "abcde"]
    assert await publish(batch, window=2) == [Fate.DELIVERED] * 10
    assert broker.rounds == [["a0", "b0"], ["c0", "d0"], ["e0", "a1"], ["b1", "c1"], ["d1", "e1"]]


async def test_a_topic_has_a_channel_of_its_own_and_its_exchange_is_declared_once(broker: Broker):
    await publish(letters("123"))
    (connection,) = broker.connections
    assert [channel.declared for channel in connection.channels] == [[("orders", False)]]


async def test_without_declare_the_exchange_is_only_looked_for(broker: Broker):
    await publish(letters("1"), declare=False)
    assert broker.connections[0].channels[0].declared == [("orders", True)]


async def test_a_message_that_was_nacked_holds_back_its_key(broker: Broker):
    def nack(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        refusal = DeliveryError(None, Basic.Nack())
        ends[:] = [refusal if found.properties.message_id == "2" else Fate.DELIVERED for found in sent]

    broker.send = nack
    outcomes = await publish([*letters("123", "a"), letter("4", "b")])
    assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
    assert broker.rounds == [["1", "4"], ["2"]]
    assert isinstance(outcomes[1], Failed)
    assert not outcomes[1].final


async def test_a_limit_of_the_broker_is_learnt_from_its_refusal(broker: Broker):
    def refuse(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        for place, found in enumerate(sent):
            if len(found.body) > 100:
                text = f"PRECONDITION_FAILED - message size {len(found.body)} is larger than configured max size 100"
                channel.fail(ChannelPreconditionFailed(text))
                return
            ends[place] = Fate.DELIVERED

    broker.send = refuse
    large = cqrs.Envelope("2", "handler", "orders", "b", "Happened", "{}", b"x" * 101)
    outcomes = await publish([letter("1"), large, letter("3", "c"), letter("4", "b")])
    assert shape(outcomes) == ["delivered", "failed", "delivered", "not sent"]
    assert outcomes[1].final
    assert "has a body of 101 bytes; at most 100 are sent" in str(outcomes[1].error)
    assert broker.rounds == [["1", "2", "3"], ["3"]]


async def test_a_channel_that_the_broker_closed_is_opened_again_and_the_round_repeated(broker: Broker):
    fates = iter([ChannelNotFoundEntity("NOT_FOUND - no exchange 'orders'"), None, None])

    def close_first(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        error = next(fates)
        if error is None:
            broker.take(channel, sent, ends)
        else:
            channel.fail(error)

    broker.send = close_first
    assert await publish(letters("12")) == [Fate.DELIVERED] * 2
    assert broker.rounds == [["1"], ["1"], ["2"]]
    assert len(broker.connections[0].channels) == 2


async def test_a_channel_that_is_closed_again_and_again_makes_the_topic_unavailable(broker: Broker):
    broker.send = lambda channel, sent, ends: channel.fail(ChannelNotFoundEntity("NOT_FOUND"))
    outcome, behind = await publish(letters("12"))
    assert isinstance(outcome, Unavailable)
    assert not outcome.everything
    assert str(outcome.error) == (
        "Exchange 'orders' takes nothing: NOT_FOUND. "
        "Declare a durable topic exchange of that name, or leave out declare=False."
    )
    assert behind is Fate.NOT_SENT
    assert len(broker.rounds) == rabbitmq.FAULTS + 1


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (ChannelAccessRefused("ACCESS_REFUSED"), "Allow this user to write to it"),
        (ChannelPreconditionFailed("PRECONDITION_FAILED"), "It is there with other properties"),
        (AMQPConnectionError("odd"), "See the broker's log."),
    ],
)
async def test_an_exchange_that_cannot_be_declared_makes_the_topic_unavailable(
    broker: Broker, error: BaseException, cure: str
):
    broker.declare_error = error
    (outcome,) = await publish([letter("1")])
    assert isinstance(outcome, Unavailable)
    assert not outcome.everything
    assert cure in str(outcome.error)
    assert broker.rounds == []


async def test_a_lost_connection_makes_everything_unavailable_and_is_made_anew(broker: Broker):
    def lose(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        ends[0] = Fate.DELIVERED
        channel.connection.is_closed = True
        channel.fail(AMQPConnectionError("Server connection reset"))

    broker.send = lose
    publisher = RabbitMQ("amqp://me:hush@one/", timeout=0.2)
    await publisher.open()
    outcomes = await publisher.publish([letter("1"), letter("2", "b"), letter("3", "b")])
    assert shape(outcomes) == ["delivered", "unavailable", "not sent"]
    assert isinstance(outcomes[1], Unavailable)
    assert outcomes[1].everything
    assert str(outcomes[1].error) == (
        "RabbitMQ at one:5672 is out of reach: Server connection reset. "
        "Check that it runs, and the address, user, password and virtual host."
    )
    broker.send = broker.take
    assert await publisher.publish(letters("23")) == [Fate.DELIVERED] * 2
    await publisher.close()
    assert len(broker.connections) == 2


@pytest.mark.parametrize(
    "error", [AMQPConnectionError(111, "Connect call failed"), StopAsyncIteration()], ids=["refused", "hung up"]
)
async def test_a_broker_that_cannot_be_connected_to_is_told_without_the_password(
    broker: Broker, caplog: pytest.LogCaptureFixture, error: BaseException
):
    broker.connect_error = error
    (outcome,) = await publish([letter("1")])
    assert isinstance(outcome, Unavailable)
    assert outcome.everything
    assert "RabbitMQ at one:5672 is out of reach" in str(outcome.error)
    assert "RabbitMQ at one:5672 is out of reach, and is tried again" in caplog.text
    assert "hush" not in caplog.text + str(outcome.error)


async def test_a_broker_that_confirms_nothing_makes_everything_unavailable(broker: Broker):
    broker.send = lambda channel, sent, ends: asyncio.Event().wait()
    outcome, behind, other = await publish([letter("1"), letter("2"), letter("3", "b")])
    assert isinstance(outcome, Unavailable)
    assert outcome.everything
    assert str(outcome.error).startswith("RabbitMQ at one:5672 confirmed nothing within 0.2 s.")
    assert shape([behind, other]) == ["not sent", "unavailable"]
    assert broker.connections[0].is_closed


async def test_a_topic_of_which_some_is_not_confirmed_is_unavailable(broker: Broker):
    def confirm_one(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> Any:
        ends[0] = Fate.DELIVERED
        return asyncio.Event().wait()

    broker.send = confirm_one
    outcomes = await publish([letter("1"), letter("2", "b")])
    assert shape(outcomes) == ["delivered", "unavailable"]
    assert not outcomes[1].everything
    assert str(outcomes[1].error).startswith("RabbitMQ confirmed no more of exchange 'orders' within 0.2 s.")


async def test_a_channel_with_messages_whose_end_is_unknown_is_closed(broker: Broker):
    begun = asyncio.Event()

    def hang(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> Any:
        begun.set()
        return asyncio.Event().wait()

    broker.send = hang
    publisher = RabbitMQ("amqp://one/", timeout=5)
    await publisher.open()
    publishing = asyncio.create_task(publisher.publish([letter("1")]))
    await begun.wait()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    broker.send = broker.take
    assert await publisher.publish([letter("1")]) == [Fate.DELIVERED]
    await publisher.close()
    assert [channel.is_closed for channel in broker.connections[0].channels] == [True, False]


async def test_nothing_is_published_after_close(broker: Broker):
    publisher = RabbitMQ("amqp://one/", timeout=0.2)
    await publisher.open()
    await publisher.close()
    assert await publisher.publish(letters("12")) == [Fate.NOT_SENT] * 2
    assert broker.rounds == []


async def test_a_correlation_that_is_too_long_for_its_property_is_in_the_headers_alone(broker: Broker):
    seen: list[Letter] = []

    def note(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        seen.extend(sent)
        broker.take(channel, sent, ends)

    broker.send = note
    saved = headers_text({"correlation_id": "x" * 300})
    await publish([cqrs.Envelope("1", "handler", "orders", None, "Happened", saved, b"{}")])
    assert seen[0].properties.correlation_id is None
    assert seen[0].properties.headers == {"ce_id": "1", "ce_type": "Happened", "correlation_id": "x" * 300}


@pytest.mark.parametrize("time", ["yesterday", ""])
async def test_a_time_that_is_none_is_left_out(broker: Broker, time: str):
    seen: list[Letter] = []

    def note(channel: FakeChannel, sent: list[Letter], ends: list[End]) -> None:
        seen.extend(sent)
        broker.take(channel, sent, ends)

    broker.send = note
    await publish([cqrs.Envelope("1", "handler", "orders", None, "Happened", headers_text({"ce_time": time}), b"{}")])
    assert seen[0].properties.timestamp is None
