"""How messages become Kafka's batches: filled as far as a limit, and halved where one is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka import errors as kafka

from cqrs.brokers.tally import UNSENDABLE, Tally, name_of, refused, text_of

if TYPE_CHECKING:
    from cqrs.brokers.producers import Producer
    from cqrs.codec import Envelope
    from cqrs.outbox.publisher import Failed

TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
REFUSED = (*TOO_LARGE, kafka.CorruptRecordException, kafka.InvalidTimestampError, kafka.UnknownError)
"""What a broker answers to a batch because of a message in it (aiokafka does not know INVALID_RECORD by name)."""


class Batches:
    """Fills batches, and learns from those that are refused for their size."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._learnt: dict[str, int] = {}
        """Topics that refused a batch for its size, and the size that batches of theirs have at most since."""

    def fill(self, tally: Tally, producer: Producer, indexes: list[int]) -> tuple[Any, list[int], list[int]]:
        """Return a batch, what is in it, and what did not fit; a message that can never be sent is refused here."""
        batch = producer.aiokafka.create_batch()
        limit = self._learnt.get(tally.envelopes[indexes[0]].topic, self._limit)
        taken: list[int] = []
        envelopes, held = tally.envelopes, tally.held
        for position, index in enumerate(indexes):
            if held and tally.is_held(index):
                continue
            envelope = envelopes[index]
            try:
                key = None if envelope.key is None else envelope.key.encode()
                headers = envelope.encoded_headers
                fits = batch.append(timestamp=None, key=key, value=envelope.payload, headers=headers)
            except UNSENDABLE as error:
                text = f"{name_of(envelope)} is nothing that Kafka can carry: {text_of(error)}"
                tally.stop(index, refused(text, error, final=True))
                continue
            if fits is None:
                return batch, taken, indexes[position:]
            if not taken and batch.size() > self._limit:
                tally.stop(index, self._oversized(envelope, batch.size()))
                batch = producer.aiokafka.create_batch()
                continue
            taken.append(index)
            if limit < self._limit and batch.size() >= limit:
                return batch, taken, indexes[position + 1 :]
        return batch, taken, []

    def divide(self, tally: Tally, taken: list[int], size: int, fault: Exception) -> list[list[int]]:
        """Return the halves of a batch that was refused, the second one first; a single message has failed."""
        if len(taken) == 1:
            tally.stop(taken[0], _refused(tally.envelopes[taken[0]], size, fault))
            return []
        if isinstance(fault, TOO_LARGE):
            self._learnt[tally.envelopes[taken[0]].topic] = size // 2
        middle = len(taken) // 2
        return [taken[middle:], taken[:middle]]

    def _oversized(self, envelope: Envelope, size: int) -> Failed:
        text = (
            f"{name_of(envelope)} has {size} bytes with its key and headers; at most {self._limit} are sent. Raise "
            "max_message_bytes, and the topic's max.message.bytes with it, or publish a reference to what is large."
        )
        return refused(text, final=True)


def _refused(envelope: Envelope, size: int, error: BaseException) -> Failed:
    if isinstance(error, TOO_LARGE):
        text = (
            f"{name_of(envelope)} has {size} bytes with its key and headers, more than the topic's max.message.bytes. "
            "Raise that, or publish a reference to what is large."
        )
        return refused(text, error, final=True)
    return refused(f"Kafka refused {name_of(envelope)}: {text_of(error)}", error)
