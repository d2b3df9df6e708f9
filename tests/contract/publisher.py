"""What every publisher must do: the suite that the test class of each destination inherits."""

from collections.abc import Sequence
from typing import Protocol

from cqrs.codec import Envelope
from cqrs.outbox import Failed, Fate, Publisher


class Bench(Protocol):
    """A publisher, and the far end that it publishes to."""

    publisher: Publisher
    refused: set[str]
    """The ids of messages that the far end refuses."""

    async def arrived(self) -> list[str]:
        """Return the ids of the messages that the far end took, in their order."""
        ...

    def stop_at(self, message_id: str) -> None:
        """Tell the publisher to stop while this message is on its way."""
        ...


def letter(message_id: str, key: str | None = "a") -> Envelope:
    return Envelope(message_id, "handler", "orders", key, "Happened", {}, b'{"name":"tea"}')


def letters(ids: str, key: str | None = "a") -> list[Envelope]:
    return [letter(message_id, key) for message_id in ids]


class PublisherContract:
    """A subclass gives the fixture `bench`, opened."""

    async def test_no_envelopes_have_no_outcomes(self, bench: Bench):
        assert list(await bench.publisher.publish([])) == []

    async def test_what_was_acknowledged_is_delivered(self, bench: Bench):
        assert list(await bench.publisher.publish([letter("1")])) == [Fate.DELIVERED]
        assert await bench.arrived() == ["1"]

    async def test_each_envelope_has_an_outcome(self, bench: Bench):
        batch = [*letters("123", "a"), *letters("456", "b"), *letters("789", None)]
        assert list(await bench.publisher.publish(batch)) == [Fate.DELIVERED] * 9

    async def test_messages_of_a_key_arrive_in_their_order(self, bench: Bench):
        await bench.publisher.publish(letters("987654321"))
        assert await bench.arrived() == list("987654321")

    async def test_messages_of_mixed_keys_arrive_in_the_order_of_each(self, bench: Bench):
        batch = [letter(f"{key}{number}", key) for number in range(20) for key in "abc"]
        await bench.publisher.publish(batch)
        arrived = await bench.arrived()
        for key in "abc":
            assert [found for found in arrived if found[0] == key] == [f"{key}{number}" for number in range(20)]

    async def test_messages_of_a_key_arrive_in_order_over_several_batches(self, bench: Bench):
        for ids in ("123", "456"):
            await bench.publisher.publish(letters(ids))
        assert await bench.arrived() == list("123456")

    async def test_a_refused_message_has_failed_with_the_reason(self, bench: Bench):
        bench.refused.add("1")
        (outcome,) = await bench.publisher.publish([letter("1")])
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, Exception)
        assert not outcome.final

    async def test_nothing_of_its_key_overtakes_a_refused_message(self, bench: Bench):
        bench.refused.add("2")
        await bench.publisher.publish(letters("1234"))
        assert await bench.arrived() == ["1"]

    async def test_what_stands_behind_a_refused_message_was_not_sent(self, bench: Bench):
        bench.refused.add("2")
        outcomes = await bench.publisher.publish(letters("1234"))
        assert shape(outcomes) == ["delivered", "failed", "not sent", "not sent"]

    async def test_other_keys_go_on_when_a_message_is_refused(self, bench: Bench):
        bench.refused.add("2")
        batch = [letter("1", "a"), letter("2", "a"), letter("3", "b"), letter("4", "a"), letter("5", "b")]
        outcomes = await bench.publisher.publish(batch)
        assert shape(outcomes) == ["delivered", "failed", "delivered", "not sent", "delivered"]

    async def test_messages_without_a_key_do_not_stand_behind_each_other(self, bench: Bench):
        bench.refused.add("1")
        outcomes = await bench.publisher.publish(letters("123", None))
        assert shape(outcomes) == ["failed", "delivered", "delivered"]

    async def test_a_refused_message_is_taken_once_the_far_end_takes_it(self, bench: Bench):
        bench.refused.add("1")
        await bench.publisher.publish(letters("12"))
        bench.refused.clear()
        assert shape(await bench.publisher.publish(letters("12"))) == ["delivered", "delivered"]
        assert await bench.arrived() == ["1", "2"]

    async def test_a_stop_finishes_what_is_on_its_way_and_hands_back_the_rest(self, bench: Bench):
        bench.stop_at("2")
        outcomes = await bench.publisher.publish(letters("1234"))
        assert shape(outcomes) == ["delivered", "delivered", "not sent", "not sent"]
        assert await bench.arrived() == ["1", "2"]


def shape(outcomes: Sequence[object]) -> list[str]:
    return ["failed" if isinstance(found, Failed) else getattr(found, "value", "") for found in outcomes]
