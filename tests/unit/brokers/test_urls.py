import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cqrs
from cqrs.brokers.kafka import Kafka
from cqrs.brokers.rabbitmq import RabbitMQ
from cqrs.brokers.urls import TLS, connect, from_object
from tests.unit.support import RecordingPublisher

EXAMPLES = 'broker="kafka://localhost:9092" or broker="amqp://guest:guest@localhost/"'
SCHEMES = f"Use one of kafka://, kafka+ssl://, amqp://, amqps://: {EXAMPLES}."
WRITE = f"Write {EXAMPLES}."


def made(url: str) -> Any:
    problems: list[cqrs.Problem] = []
    publisher = connect(url, problems, slots=16, timeout=5.0)
    assert problems == []
    return publisher


def refused(url: str) -> list[str]:
    problems: list[cqrs.Problem] = []
    assert connect(url, problems, slots=16) is None
    return [str(problem) for problem in problems]


def test_a_kafka_url_names_one_server_or_several():
    publisher = made("kafka://one:9093,two,[::1]:9094")
    assert isinstance(publisher, Kafka)
    assert publisher._options["bootstrap_servers"] == ["one:9093", "two:9092", "[::1]:9094"]
    assert publisher._options["security_protocol"] == "PLAINTEXT"
    assert publisher._options["request_timeout_ms"] == 5000


def test_every_kafka_publisher_is_idempotent_and_waits_for_all_replicas():
    options = made("kafka://one")._options
    assert (options["acks"], options["enable_idempotence"]) == ("all", True)


@pytest.mark.parametrize(
    ("url", "protocol", "mechanism"),
    [
        ("kafka://me:p%40ss%2F@one", "SASL_PLAINTEXT", "PLAIN"),
        ("kafka+ssl://me:p%40ss%2F@one", "SASL_SSL", "PLAIN"),
        ("kafka+ssl://me:p%40ss%2F@one?sasl_mechanism=SCRAM-SHA-256", "SASL_SSL", "SCRAM-SHA-256"),
        ("kafka+ssl://me:p%40ss%2F@one/?sasl_mechanism=SCRAM-SHA-512", "SASL_SSL", "SCRAM-SHA-512"),
    ],
)
def test_a_kafka_url_with_a_user_authenticates_by_sasl(url: str, protocol: str, mechanism: str):
    options = made(url)._options
    assert (options["security_protocol"], options["sasl_mechanism"]) == (protocol, mechanism)
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "p@ss/")


def test_a_kafka_url_with_ssl_verifies_the_server():
    options = made("kafka+ssl://one")._options
    assert options["security_protocol"] == "SSL"
    assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname


def test_a_kafka_url_has_parameters():
    publisher = made("kafka://one?compression=gzip&client_id=shop&max_message_bytes=2000000")
    assert publisher._options["compression_type"] == "gzip"
    assert publisher._options["client_id"] == "shop"
    assert publisher._batches._limit == 2_000_000


def test_an_amqp_url_has_user_host_and_virtual_host():
    publisher = made("amqp://me:p%40ss%2F@rabbit:5673/my%2Fhost")
    assert isinstance(publisher, RabbitMQ)
    url = publisher._url
    assert (url.user, url.password, url.host, url.port, url.path) == ("me", "p@ss/", "rabbit", 5673, "/my/host")


def test_an_amqp_url_without_a_user_is_the_guests():
    url = made("amqp://rabbit")._url
    assert (url.user, url.password, url.path) == ("guest", "guest", "/")


def test_an_amqps_url_verifies_the_server():
    context = made("amqps://rabbit")._ssl_context
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert made("amqp://rabbit")._ssl_context is None


def test_an_amqp_url_has_parameters():
    publisher = made("amqp://rabbit?declare=false&heartbeat=10&window=50&max_message_bytes=1000")
    assert (publisher._channels._declare, publisher._window, publisher._limit) == (False, 50, 1000)
    assert publisher._url.query["heartbeat"] == "10"


@pytest.mark.parametrize(
    ("url", "what", "cure"),
    [
        ("localhost:9092", "The broker is no URL, and its scheme is none that a broker has", SCHEMES),
        ("redis://localhost", "The scheme 'redis' is none that a broker has", SCHEMES),
        ("kafka://", "There is no host, or a port that is no number, in the broker's URL, kafka://", WRITE),
        ("kafka://one:port", "There is no host, or a port that is no number, in the broker's URL, kafka://", WRITE),
        ("kafka://one,,two", "There is no host, or a port that is no number, in the broker's URL, kafka://", WRITE),
        ("kafka://one/orders", "A Kafka URL has a path", "Leave it out: topics are named by @cqrs.integration_event."),
        (
            "kafka://one?acks=1&linger_ms=5",
            "The broker's URL, kafka://, has unknown parameters: acks, linger_ms",
            f"It may have client_id, compression, max_message_bytes, sasl_mechanism, {', '.join(TLS)}.",
        ),
        (
            "kafka://one?compression=rar",
            "compression= of the broker's URL is unknown",
            "Use gzip, snappy, lz4 or zstd.",
        ),
        (
            "kafka://one?max_message_bytes=1MB",
            "max_message_bytes= of the broker's URL is no number above 0",
            "Write max_message_bytes=100000.",
        ),
        (
            "kafka://one?sasl_mechanism=PLAIN",
            "sasl_mechanism= of the broker's URL has no user",
            "Write kafka://user:password@host.",
        ),
        (
            "kafka://one?ssl_cafile=ca.pem",
            "ssl_cafile of the broker's URL mean nothing without TLS",
            "Write kafka+ssl:// instead of kafka://.",
        ),
        ("kafka+ssl://one?ssl_keyfile=key.pem", "ssl_keyfile= of the broker's URL has no ssl_certfile=", "Give both."),
        (
            "kafka+ssl://one?ssl_cafile=/no/ca.pem",
            "ssl_cafile of the broker's URL cannot be loaded: [Errno 2] No such file or directory",
            "Give paths of PEM files that this process may read.",
        ),
        (
            "amqp://one,two",
            "An AMQP URL has several hosts",
            "Name one: a cluster's load balancer, or a name with several addresses.",
        ),
        ("amqp://one/my/host", "The virtual host of the broker's URL has a /", "Percent-encode it as %2F."),
        ("amqp://one?declare=no", "declare= of the broker's URL is neither true nor false", "Write declare=false."),
        (
            "amqp://one?ssl_cafile=ca.pem",
            "ssl_cafile of the broker's URL mean nothing without TLS",
            "Write amqps:// instead of amqp://.",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_its_cure(url: str, what: str, cure: str):
    assert refused(url) == [f"{what}. {cure}"]


def test_all_problems_of_a_url_are_told_together():
    assert len(refused("kafka://one/orders?compression=rar&ssl_cafile=ca.pem&acks=1")) == 4


@pytest.mark.parametrize(
    "url",
    [
        "me:hush@host",
        "nats://me:hush@host",
        "kafka://me:hush/@host",
        "kafka://me:hush?@host",
        "kafka://me:hush#@host",
        "kafka://me:hu?hush=sh@host",
        "kafka://me:hush@host:port",
        "kafka://me:hush@host?password=hush",
        "kafka://me:hush@host?sasl_mechanism=hush",
        "kafka://me:hush@host?compression=hush",
        "kafka://me:hush@host/hush",
        "amqp://me:hush/@host",
        "amqp://me:hush@one,two",
        "amqp://me:hush@[host",
        "amqp://me:hush@host?heartbeat=hush&declare=hush",
    ],
)
def test_no_problem_shows_a_secret(url: str):
    problems = refused(url)
    assert problems
    assert not [problem for problem in problems if "hush" in problem]


@pytest.mark.parametrize("url", ["kafka://me:hush@host", "amqp://me:hush@host"])
def test_no_publisher_shows_its_secret(url: str):
    assert "hush" not in repr(made(url)) + str(made(url))


@pytest.mark.parametrize(
    ("url", "package", "extra"), [("kafka://one", "aiokafka", "kafka"), ("amqp://one", "aiormq", "rabbitmq")]
)
def test_a_package_that_is_missing_is_told_with_the_command_to_install_it(url: str, package: str, extra: str):
    source = f"""
import sys
sys.modules["{package}"] = None
from cqrs.brokers.urls import connect
problems = []
connect("{url}", problems, slots=16)
print(*problems)
"""
    assert python(source) == (
        f"The broker's URL needs the package {package}, which is not installed. "
        f"Run: pip install 'cqrs-toolkit[{extra}]'"
    )


def test_a_package_that_is_missing_within_another_is_its_own_error():
    source = """
import sys
sys.modules["aiokafka"] = None
sys.modules["pamqp"] = None
from cqrs.brokers.urls import connect
try:
    connect("amqp://one", [], slots=16)
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(source).startswith("pamqp")


def python(source: str) -> str:
    root = Path(cqrs.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", source], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


class Printing:
    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, envelopes: Any) -> Any: ...


def test_a_publisher_is_taken_as_it_is():
    publisher, problems = Printing(), []
    assert from_object(publisher, problems, slots=16) is publisher
    assert problems == []


def test_an_empty_url_is_refused_with_what_means_no_broker():
    problems: list[cqrs.Problem] = []
    assert connect("", problems, slots=16) is None
    cure = "Pass a URL, or None where there is no broker: os.environ.get('BROKER_URL') or None."
    assert [str(problem) for problem in problems] == [f"The broker's URL is empty. {cure}"]


def test_the_class_of_a_broker_is_refused():
    problems: list[cqrs.Problem] = []
    assert from_object(RecordingPublisher, problems, slots=16) is None
    assert [str(problem) for problem in problems] == [
        "The broker RecordingPublisher is a class. Pass an object of it: RecordingPublisher(...)."
    ]


def test_what_is_no_publisher_is_refused():
    problems: list[cqrs.Problem] = []
    assert from_object(object(), problems, slots=16) is None
    cure = f"Pass a URL ({EXAMPLES}), a FastStream broker, a cqrs.Publisher, or None."
    assert [str(problem) for problem in problems] == [f"The broker object has no open, close, publish. {cure}"]
