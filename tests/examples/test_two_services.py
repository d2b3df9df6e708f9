"""Two services that talk over a broker; one of them is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import server

ROOT = Path(__file__).parents[2]


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize("broker", ["KAFKA_URL", "RABBITMQ_URL"])
def test_every_order_gets_one_invoice_although_billing_is_killed(broker: str):
    environment = {**os.environ, "BROKER_URL": server(broker)}
    command = [sys.executable, "-m", "examples.two_services"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "100 orders, 100 invoices, 0 too many, none missing"


def test_without_a_broker_it_says_what_to_set():
    environment = {name: value for name, value in os.environ.items() if name != "BROKER_URL"}
    command = [sys.executable, "-m", "examples.two_services"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Set BROKER_URL")
