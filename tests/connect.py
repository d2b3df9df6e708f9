"""A standalone Kafka Connect worker with Debezium, run from the files of `examples/debezium` as they are."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import sqlalchemy as sa

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/debezium"
SECONDS_TO_START = 120
SECONDS_TO_STOP = 60


class Connect:
    """One worker and its folder, which holds how far the log was read: a new process goes on from there."""

    def __init__(self, folder: Path, *, kafka: str, database: str, slot: str, application: str) -> None:
        place = sa.make_url(database)
        with socket.socket() as attempt:
            attempt.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{attempt.getsockname()[1]}"
        self._log = folder / "connect.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = os.environ | {
            "KAFKA_SERVERS": kafka,
            "CONNECT_LISTENER": self.address,
            "CONNECT_OFFSETS": str(folder / "offsets"),
            "DATABASE_HOST": str(place.host),
            "DATABASE_PORT": str(place.port),
            "DATABASE_USER": str(place.username),
            "DATABASE_PASSWORD": str(place.password),
            "DATABASE_NAME": str(place.database),
            "DATABASE_SLOT": slot,
            "APPLICATION_NAME": application,
        }

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Return once the connector's task runs."""
        jars = subprocess.run([ROOT / "scripts/debezium"], check=True, capture_output=True, text=True).stdout.strip()
        java = ["java", "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        worker = [*java, "-cp", jars, "org.apache.kafka.connect.cli.ConnectStandalone"]
        files = [EXAMPLE / "connect.properties", EXAMPLE / "outbox.properties"]
        with self._log.open("ab") as log:
            given = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": self._environment}
            self._process = subprocess.Popen([*worker, *files], **given)
        deadline = time.monotonic() + SECONDS_TO_START
        while self._state() != ["RUNNING", "RUNNING"]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Kafka Connect did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(SECONDS_TO_STOP)

    def _state(self) -> list[str]:
        """The states of the connector and of its task."""
        try:
            with urllib.request.urlopen(f"{self.address}/connectors/outbox/status", timeout=10) as answer:
                status = json.load(answer)
        except OSError:
            return []
        return [status["connector"]["state"], *(task["state"] for task in status["tasks"])]
