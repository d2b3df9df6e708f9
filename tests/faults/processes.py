"""Processes that are started again whenever they end, until they are told to."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

from tests.faults.application import Setting

ROOT = Path(__file__).parents[2]
PAUSE = 0.2
"""Seconds between an end and the next start."""
TIME_TO_END = 20.0
"""Seconds from SIGTERM until a process must have ended."""


class Process:
    """One role of the application: a module with a setting, which is made anew for every start."""

    def __init__(
        self,
        role: str,
        setting: Callable[[], Setting],
        log: Path,
        *,
        environment: Mapping[str, str] = {},
        ended: Callable[[Setting], None] = lambda _: None,
    ) -> None:
        self.role = role
        self.starts = 0
        self.began = 0.0
        self.late = False
        """Whether it did not end when it was told to."""
        self._make = setting
        self._log = log
        self._environment = environment
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._setting: Setting | None = None
        self._killed = False
        self.retired = False
        """Whether it is not started again."""

    async def keep(self) -> None:
        """Start it, and start it again."""
        while not self.retired:
            setting = self._setting = self._make()
            with self._log.open("ab") as log:
                process = self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    f"tests.faults.{self.role}",
                    setting.text(),
                    cwd=ROOT,
                    env={**os.environ, **self._environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self.starts += 1
            self.began = monotonic()
            self._killed = False
            if await process.wait() == -signal.SIGKILL and not self._killed:
                self._ended(setting)
            await asyncio.sleep(PAUSE)

    @property
    def name(self) -> str:
        return f"{self.role} {self._setting.number}" if self._setting else self.role

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        self._killed = True
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    async def terminate(self) -> None:
        """Ask it to end, and wait until it has; one that does not is killed, and late."""
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(TIME_TO_END):
                await process.wait()
        except TimeoutError:
            self.late = True
            self.kill()

    def retire(self) -> None:
        """Let its next end be its last."""
        self.retired = True

    async def end(self) -> None:
        """End it for good."""
        self.retire()
        self.go_on()
        await self.terminate()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
