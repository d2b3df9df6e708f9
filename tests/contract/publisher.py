"""What every publisher must do: the suite that the test class of each destination inherits."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import pytest

import cqrs
from cqrs.codec import Envelope
from cqrs.outbox import Failed, Fate, Outcome, Publisher, Unavailable
from tests.proxy import Proxy


class Bench(Protocol):
    """A publisher, and the far end that it publishes to."""

    publisher: Publisher
    refused: set[str]
    """The ids of messages that the far end refuses."""
    final: bool
    """Whether it refuses them for good."""

    async def arrived(self) -> list[str]:
        """Return the ids of the messages that the far end took, in their order."""
        ...

    def stop_at(self, message_id: str) -> None:
        """Tell the publisher to stop while this message is on its way."""
        ...


class BrokerBench(Bench, Protocol):
    """A publisher to a broker behind a proxy."""

    proxy: Proxy
    timeout: float

    async def until_delivered(self, envelopes: Sequence[Envelope]) -> None:
        """Publish again and again what was not delivered, as a relay does."""
        ...


def letter(message_id: str, key: str | None = "a") -> Envelope:
    return Envelope(message_id, "handler", "orders", key, "Happened", "{}", b'{"name":"tea"}')


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

    async def test_messages_that_are_published_again_arrive_again(self, bench: Bench):
        for _ in range(2):
            assert shape(await bench.publisher.publish(letters("12"))) == ["delivered", "delivered"]
        assert await bench.arrived() == list("1212")

    async def test_a_refused_message_has_failed_with_the_reason(self, bench: Bench):
        bench.refused.add("1")
        (outcome,) = await bench.publisher.publish([letter("1")])
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, Exception)
        assert outcome.final is bench.final

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

    async def test_a_message_whose_headers_somebody_broke_has_failed_for_good(self, bench: Bench):
        broken = letter("2")._replace(saved="no JSON")
        outcomes = await bench.publisher.publish([letter("1"), broken, letter("3"), letter("4", "b")])
        assert shape(outcomes) == ["delivered", "failed", "not sent", "delivered"]
        assert isinstance(outcomes[1], Failed)
        assert outcomes[1].final
        assert "The saved headers are not a JSON object of text" in str(outcomes[1].error)

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
        arrived = await bench.arrived()
        assert arrived in (["1", "2"], ["1", "2", "3", "4"])  # the latter where all are one batch
        assert shape(outcomes) == ["delivered"] * len(arrived) + ["not sent"] * (4 - len(arrived))

    async def test_nothing_is_begun_after_a_stop(self, bench: Bench):
        bench.stop_at("1")
        await bench.publisher.publish([letter("1")])
        assert shape(await bench.publisher.publish(letters("23"))) == ["not sent", "not sent"]
        assert await bench.arrived() == ["1"]


class BrokerContract(PublisherContract):
    """What every publisher to a broker must do beyond that: the broker goes away, hangs, and comes back."""

    async def test_what_a_broker_that_is_gone_does_not_take_is_unavailable(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        bench.proxy.cut()
        outcomes = await bench.publisher.publish([letter("1", "a"), letter("2", "a"), letter("3", "b")])
        assert shape(outcomes) == ["unavailable", "not sent", "unavailable"]
        assert all(outcome.everything for outcome in outcomes if isinstance(outcome, Unavailable))

    async def test_a_broker_in_reach_answers_a_ping_and_one_that_is_gone_says_so(self, bench: BrokerBench):
        await bench.ping()
        bench.proxy.cut()
        with pytest.raises(cqrs.PublishError, match="is out of reach"):
            async with asyncio.timeout(20):
                await bench.ping()
        bench.proxy.resume()
        async with asyncio.timeout(30):
            while not await bench.is_in_reach():  # noqa: ASYNC110 - a broker tells nobody
                await asyncio.sleep(0.05)

    async def test_a_broker_that_is_back_takes_what_it_missed(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        bench.proxy.cut()
        await bench.publisher.publish(letters("123"))
        bench.proxy.resume()
        await bench.until_delivered(letters("123"))
        assert await bench.arrived() == list("0123")

    async def test_a_broker_that_hangs_is_given_up_in_time(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        bench.proxy.stall()
        begun = time.monotonic()
        outcomes = await bench.publisher.publish([letter("1", "a"), letter("2", "a"), letter("3", "b")])
        assert time.monotonic() - begun < bench.timeout + 1
        assert shape(outcomes) == ["unavailable", "not sent", "unavailable"]

    async def test_what_hung_overtakes_nothing_when_it_gets_through(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        bench.proxy.stall()
        await bench.publisher.publish(letters("123"))
        bench.proxy.resume()
        await bench.until_delivered(letters("123"))
        await bench.until_delivered(letters("456"))
        assert firsts(await bench.arrived()) == list("0123456")

    async def test_order_is_kept_however_the_network_behaves(self, bench: BrokerBench):
        acts = (bench.proxy.cut, bench.proxy.stall, bench.proxy.cut, bench.proxy.stall)

        async def disturb() -> None:
            for act in acts:
                await asyncio.sleep(0.2)
                act()
                await asyncio.sleep(bench.timeout * 0.6)
                bench.proxy.resume()

        disturbing = asyncio.create_task(disturb())
        for start in itertools.count(step=5):
            await bench.until_delivered([letter(f"{key}{start + n:05}", key) for n in range(5) for key in "abcd"])
            await asyncio.sleep(0.01)
            if disturbing.done():
                break
        arrived = await bench.arrived()
        for key in "abcd":
            assert firsts(found for found in arrived if found[0] == key) == [f"{key}{n:05}" for n in range(start + 5)]

    async def test_a_publish_that_is_cancelled_leaves_a_publisher_that_works(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        bench.proxy.stall()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await bench.publisher.publish(letters("123"))
        bench.proxy.resume()
        await bench.until_delivered(letters("123"))
        assert firsts(await bench.arrived()) == list("0123")

    async def test_a_publisher_opens_while_the_broker_is_away(self, bench: BrokerBench):
        await bench.publisher.close()
        bench.proxy.cut()
        await bench.publisher.open()
        bench.proxy.resume()
        await bench.until_delivered(letters("12"))
        assert await bench.arrived() == ["1", "2"]

    async def test_a_publisher_that_is_closed_finishes_what_is_in_flight(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        publishing = asyncio.create_task(bench.publisher.publish([letter(str(n), f"k{n}") for n in range(1, 500)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await bench.publisher.close()
        outcomes = shape(await publishing)
        assert set(outcomes) <= {"delivered", "not sent"}
        assert len(await bench.arrived()) == 1 + outcomes.count("delivered")

    async def test_publishes_side_by_side_do_not_disturb_each_other(self, bench: BrokerBench):
        bench.refused.add("a1")

        async def publish(key: str) -> list[str]:
            return shape(await bench.publisher.publish([letter(f"{key}{number}", key) for number in range(3)]))

        failed, *others = await asyncio.gather(*(publish(key) for key in "abcdefgh"))
        assert failed == ["delivered", "failed", "not sent"]
        assert others == [["delivered"] * 3] * 7

    async def test_a_stop_without_a_broker_ends_in_time(self, bench: BrokerBench):
        await bench.publisher.publish([letter("0")])
        bench.proxy.stall()
        publishing = asyncio.create_task(bench.publisher.publish(letters("123")))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await bench.publisher.close()
        assert time.monotonic() - begun < 3 * bench.timeout
        assert shape(await publishing) in (["unavailable", "not sent", "not sent"], ["not sent"] * 3)


def firsts(ids: Iterable[str]) -> list[str]:
    """Return the order in which messages arrived for the first time."""
    return list(dict.fromkeys(ids))


def shape(outcomes: Sequence[Outcome]) -> list[str]:
    return [found.value if isinstance(found, Fate) else type(found).__name__.lower() for found in outcomes]
