"""Where the brokers are that the tests marked `services` use. A stand-in until tests/servers.py starts them."""

import os

import pytest


def url_of(name: str) -> str:
    """Return the URL of a server, or skip the test."""
    url = os.environ.get(name)
    if not url:
        pytest.skip(f"{name} is not set")
    return url
