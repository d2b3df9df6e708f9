"""A TCP proxy that a test puts before a server, to take the network away from it and give it back."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self


class Proxy:
    """Stands at `port` before a server at `host` and `target`; open it with `async with`."""

    def __init__(self, host: str, target: int) -> None:
        self.host = host
        self.target = target
        self.port = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._gone = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        self._gone = True
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing on, in either direction, and break nothing: a network that swallows everything."""
        self._flowing.clear()

    def resume(self) -> None:
        """Be a good network again; what was stalled is passed on now."""
        self._gone = False
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._gone:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._writers.add(sink)
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    await self._flowing.wait()
                    sink.write(data)
                    await sink.drain()
        finally:
            self._writers.discard(sink)
            sink.transport.abort()


@contextmanager
def all_ways_through(proxy: Proxy) -> Iterator[None]:
    """Lead what this loop connects to 127.0.0.1 and the proxy's target through the proxy: Kafka names its own address.

    The proxy itself has to name its host otherwise: `localhost`.
    """
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def create_connection(factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        through = (host, port) == ("127.0.0.1", proxy.target)
        return await connect(factory, host, proxy.port if through else port, **options)

    loop.create_connection = create_connection  # type: ignore[method-assign] # there is no hook for it
    try:
        yield
    finally:
        loop.create_connection = connect  # type: ignore[method-assign]
