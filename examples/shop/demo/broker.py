"""What the demo asks of the broker itself: to leave out what earlier runs have published."""

from typing import Any
from urllib.parse import urlsplit

from examples.shop.messages import TOPIC

APPLICATION = "shop"
"""The consumer group on Kafka, and how the queue's name on RabbitMQ begins."""
PARTITIONS = 6


async def skip(broker: str) -> None:
    """Let the shop begin behind what is there; on Kafka its topic is created where there is none."""
    await (skip_kafka(broker) if broker.startswith("kafka") else skip_rabbitmq(broker))


async def skip_kafka(broker: str) -> None:
    from aiokafka import AIOKafkaConsumer

    servers = urlsplit(broker).netloc
    await create_topic(servers)
    options: dict[str, Any] = {"group_id": APPLICATION, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    async with AIOKafkaConsumer(TOPIC, bootstrap_servers=servers, **options) as consumer:
        await consumer.seek_to_end()
        await consumer.commit()


async def create_topic(servers: str, topic: str = TOPIC) -> None:
    """Create the topic; one that is there already stays as it is."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic
    from aiokafka.errors import KafkaConnectionError

    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    try:
        await admin.start()
        brokers = (await admin.describe_cluster())["brokers"]
        await admin.create_topics([NewTopic(topic, PARTITIONS, min(len(brokers), 3))])
    except KafkaConnectionError:
        raise ConnectionError(f"Kafka at {servers} is out of reach") from None
    finally:
        await admin.close()


async def skip_rabbitmq(broker: str) -> None:
    import aio_pika
    from aio_pika.exceptions import ChannelNotFoundEntity

    async with await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        try:
            queue = await channel.declare_queue(f"{APPLICATION}.{TOPIC}", passive=True)
        except ChannelNotFoundEntity:
            return  # nobody has consumed yet
        await queue.purge()
