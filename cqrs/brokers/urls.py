"""From what the user gave as `broker=` to a publisher, with everything that is wrong with it.

No text of a problem shows more of a URL than its scheme and the names of parameters: the rest may hold a password.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from cqrs.errors import Problem

if TYPE_CHECKING:
    from cqrs.outbox.publisher import Publisher

EXAMPLES = 'broker="kafka://localhost:9092" or broker="amqp://guest:guest@localhost/"'
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TLS = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class _Url:
    """A URL in its parts; its secrets are not shown."""

    scheme: str
    hosts: str
    user: str | None
    password: str | None = field(repr=False)
    path: str
    query: dict[str, str] = field(repr=False)


def connect(url: str, problems: list[Problem], *, slots: int, timeout: float = 8.0) -> Publisher | None:
    """Return the publisher behind a URL; None when there are problems with it. Nothing is connected yet."""
    if not url:
        cure = "Pass a URL, or None where there is no broker: os.environ.get('BROKER_URL') or None."
        problems.append(Problem("The broker's URL is empty", cure))
        return None
    known = len(problems)
    parts = _parse(url, problems)
    publisher = None if parts is None else _MAKERS[parts.scheme](parts, problems, slots=slots, timeout=timeout)
    return publisher if len(problems) == known else None


def from_object(broker: Any, problems: list[Problem], *, slots: int, timeout: float = 8.0) -> Publisher | None:
    """Return the object itself where it is a publisher, and a FastStream broker in its adapter."""
    kinds = [kind.__module__.partition(".")[0] for kind in type(broker).__mro__]
    if "faststream" in kinds:
        from cqrs.brokers.faststream import FastStreamBroker, check

        known = len(problems)
        check(broker, problems)
        return FastStreamBroker(broker, slots=slots, timeout=timeout) if len(problems) == known else None
    if isinstance(broker, type):
        name = broker.__qualname__
        problems.append(Problem(f"The broker {name} is a class", f"Pass an object of it: {name}(...)."))
        return None
    missing = [name for name in ("open", "close", "publish") if not callable(getattr(broker, name, None))]
    if missing:
        cure = f"Pass a URL ({EXAMPLES}), a FastStream broker, a cqrs.Publisher, or None."
        problems.append(Problem(f"The broker {type(broker).__qualname__} has no {', '.join(missing)}", cure))
        return None
    return cast("Publisher", broker)


def _parse(text: str, problems: list[Problem]) -> _Url | None:
    scheme, separator, rest = text.partition("://")
    # Apart from the rest: Python 3.14 takes several hosts with a bracketed one among them for none.
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    try:
        found = urlsplit(f"{scheme}{separator}host{rest.removeprefix(place)}" if separator else text)
        query = parse_qsl(found.query, keep_blank_values=True, strict_parsing=bool(found.query))
    except ValueError:
        problems.append(Problem("The broker is no URL that can be read", f"Write for example {EXAMPLES}."))
        return None
    if found.scheme not in _MAKERS:
        known = ", ".join(f"{scheme}://" for scheme in _MAKERS)
        shown = f"The scheme '{found.scheme}'" if "://" in text else "The broker is no URL, and its scheme"
        problems.append(Problem(f"{shown} is none that a broker has", f"Use one of {known}: {EXAMPLES}."))
        return None
    where = f"the broker's URL, {found.scheme}://"
    if "@" in found.path + found.query or found.fragment:
        cure = "Percent-encode / ? # and @ in the user and the password: urllib.parse.quote(password, safe='')."
        problems.append(Problem(f"There is an @ or # out of place in {where}", cure))
        return None
    login, _, hosts = place.rpartition("@")
    user, colon, password = login.partition(":")
    if not hosts or not all(_is_host(host) for host in hosts.split(",")):
        problems.append(Problem(f"There is no host, or a port that is no number, in {where}", f"Write {EXAMPLES}."))
        return None
    return _Url(
        found.scheme,
        hosts,
        unquote(user) if login else None,
        unquote(password) if colon else None,
        found.path,
        dict(query),
    )


def _is_host(text: str) -> bool:
    try:
        found = urlsplit(f"//{text}")
        return bool(found.hostname) and (found.port is None or found.port > 0)
    except ValueError:
        return False


def _kafka(url: _Url, problems: list[Problem], *, slots: int, timeout: float) -> Publisher | None:
    del slots  # a partition is the topic's business
    secure = url.scheme == "kafka+ssl"
    query = _known(url, ("client_id", "compression", "max_message_bytes", "sasl_mechanism", *TLS), problems)
    options: dict[str, Any] = {name: query[name] for name in ("client_id", "compression") if name in query}
    _number(query, "max_message_bytes", options, problems)
    if url.path not in ("", "/"):
        problems.append(Problem("A Kafka URL has a path", "Leave it out: topics are named by @cqrs.integration_event."))
    if "compression" in query and query["compression"] not in ("gzip", "snappy", "lz4", "zstd"):
        problems.append(Problem("compression= of the broker's URL is unknown", "Use gzip, snappy, lz4 or zstd."))
    mechanism = query.get("sasl_mechanism", "PLAIN")
    if mechanism not in MECHANISMS:
        cure = f"Use {', '.join(MECHANISMS)}; for others pass cqrs.brokers.kafka.Kafka(..., sasl_mechanism=...)."
        problems.append(Problem("sasl_mechanism= of the broker's URL is unknown", cure))
    if "sasl_mechanism" in query and url.user is None:
        problems.append(Problem("sasl_mechanism= of the broker's URL has no user", "Write kafka://user:password@host."))
    context = _tls(url, query, problems, secure=secure, scheme="kafka+ssl")
    if url.user is not None:
        options |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": url.user,
            "sasl_plain_password": url.password or "",
        }
    protocol = "SSL" if secure else "PLAINTEXT"
    options["security_protocol"] = protocol if url.user is None else f"SASL_{protocol}"
    if context is not None:
        options["ssl_context"] = context
    hosts = ",".join(host if urlsplit(f"//{host}").port else f"{host}:9092" for host in url.hosts.split(","))
    try:
        from cqrs.brokers.kafka import Kafka
    except ModuleNotFoundError as error:
        _missing(error, "aiokafka", "kafka", problems)
        return None
    return Kafka(hosts, timeout=timeout, **options)


def _rabbitmq(url: _Url, problems: list[Problem], *, slots: int, timeout: float) -> Publisher | None:
    query = _known(url, ("declare", "heartbeat", "max_message_bytes", "window", *TLS), problems)
    options: dict[str, Any] = {}
    for name in ("heartbeat", "max_message_bytes", "window"):
        _number(query, name, options, problems)
    if query.get("declare", "true") not in ("true", "false"):
        problems.append(Problem("declare= of the broker's URL is neither true nor false", "Write declare=false."))
    if "," in url.hosts:
        cure = "Name one: a cluster's load balancer, or a name with several addresses."
        problems.append(Problem("An AMQP URL has several hosts", cure))
    if "/" in url.path[1:]:
        problems.append(Problem("The virtual host of the broker's URL has a /", "Percent-encode it as %2F."))
    context = _tls(url, query, problems, secure=url.scheme == "amqps", scheme="amqps")
    try:
        from cqrs.brokers.rabbitmq import RabbitMQ
    except ModuleNotFoundError as error:
        _missing(error, "aiormq", "rabbitmq", problems)
        return None
    user, password = ("guest", "guest") if url.user is None else (url.user, url.password or "")
    address = f"{url.scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{url.hosts}{url.path or '/'}"
    declare = query.get("declare", "true") == "true"
    return RabbitMQ(address, slots=slots, timeout=timeout, declare=declare, ssl_context=context, **options)


def _known(url: _Url, names: tuple[str, ...], problems: list[Problem]) -> dict[str, str]:
    """Return the parameters of a URL, which are all among these names."""
    unknown = sorted(url.query.keys() - set(names))
    if unknown:
        what = f"The broker's URL, {url.scheme}://, has unknown parameters: {', '.join(unknown)}"
        problems.append(Problem(what, f"It may have {', '.join(names)}."))
    return url.query


def _number(query: dict[str, str], name: str, options: dict[str, Any], problems: list[Problem]) -> None:
    if name not in query:
        return
    if query[name].isdecimal() and int(query[name]) > 0:
        options[name] = int(query[name])
    else:
        problems.append(Problem(f"{name}= of the broker's URL is no number above 0", f"Write {name}=100000."))


def _tls(
    url: _Url, query: dict[str, str], problems: list[Problem], *, secure: bool, scheme: str
) -> ssl.SSLContext | None:
    given = [name for name in TLS if name in query]
    if not secure:
        if given:
            what = f"{', '.join(given)} of the broker's URL mean nothing without TLS"
            problems.append(Problem(what, f"Write {scheme}:// instead of {url.scheme}://."))
        return None
    if "ssl_keyfile" in query and "ssl_certfile" not in query:
        problems.append(Problem("ssl_keyfile= of the broker's URL has no ssl_certfile=", "Give both."))
        return None
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_cafile"))
        if "ssl_certfile" in query:
            context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    except OSError as error:
        what = f"{', '.join(given)} of the broker's URL cannot be loaded: {error}"
        problems.append(Problem(what, "Give paths of PEM files that this process may read."))
        return None
    return context


def _missing(error: ModuleNotFoundError, package: str, extra: str, problems: list[Problem]) -> None:
    if error.name != package:
        raise error
    what = f"The broker's URL needs the package {package}, which is not installed"
    problems.append(Problem(what, f"Run: pip install 'cqrs-toolkit[{extra}]'"))


_MAKERS: dict[str, Callable[..., Publisher | None]] = {
    "kafka": _kafka,
    "kafka+ssl": _kafka,
    "amqp": _rabbitmq,
    "amqps": _rabbitmq,
}
