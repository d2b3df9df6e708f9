"""Servers that may be killed: instances of their own, beside those that other tests use."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "services"
VARIABLES = {"postgres": "POSTGRES_URL", "mariadb": "MYSQL_URL", "kafka": "KAFKA_URL", "rabbitmq": "RABBITMQ_URL"}


class Instances:
    """The servers that `scripts/services` keeps in one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.urls: dict[str, str] = {}

    async def up(self, names: Sequence[str]) -> None:
        """Start what was not started yet."""
        if self.urls.keys() >= set(names):
            return
        exported = await self._run("up", *names)
        found = dict(line.removeprefix("export ").split("=", 1) for line in exported.splitlines())
        self.urls |= {name: found[VARIABLES[name]].strip("'") for name in names}

    async def restart(self, name: str) -> None:
        """Stop it as it should be stopped, and start it."""
        await self._run("restart", name)

    async def kill(self, name: str) -> None:
        """Kill it, and start it with what it has on its disk."""
        await self._run("kill", name)
        await self._run("up", name)

    async def down(self) -> None:
        await self._run("down")

    async def _run(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            SCRIPT,
            *arguments,
            env={**os.environ, "CQRS_SERVICES_HOME": str(self.home)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"scripts/services {' '.join(arguments)}: {errors.decode()}")
        return out.decode()


@contextlib.asynccontextmanager
async def instances() -> AsyncIterator[Instances]:
    """Where servers can be started; in the end they are removed with their data, or stay in $FAULTS_SERVICES_HOME."""
    given = os.environ.get("FAULTS_SERVICES_HOME")
    home = Path(given or await asyncio.to_thread(tempfile.mkdtemp, prefix="cqrs-faults-services-"))
    if not given:
        await asyncio.to_thread(home.chmod, 0o755)  # servers run under accounts of their own
    found = Instances(home)
    try:
        yield found
    finally:
        if not given:
            await found.down()
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)
