"""The relay beside the outboxes of other Python libraries, each in its own environment and in the same run.

Theirs are slow, so that they have fewer rows: that favours them, since their rates fall with the number of rows.
"""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from benchmarks import peer, servers
from benchmarks.effort import Effort
from benchmarks.lines import Bar, Job, Line, ratio
from benchmarks.ours import Publisher, alternate, running
from benchmarks.relay import conditions, database, drains, rates

TUNED = {
    peer.PYTHON_CQRS_OUTBOX: "batches of 1,000, one commit a batch, no log, no pause",
    peer.FASTSTREAM_OUTBOX: "fetch 1,000, 2 workers, 500 deleted at once, no wait between fetches",
}


async def against(effort: Effort, kind: peer.Kind, bar: Bar) -> list[Line]:
    """Let both empty an outbox on PostgreSQL to nothing."""
    name, what = f"peer-{kind.name}", f"PostgreSQL → nothing, against {kind.pinned.replace('==', ' ')}"
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        theirs = await stack.enter_async_context(servers.scratch(servers.POSTGRESQL))
        try:
            beside = stack.enter_context(peer.running(folder, kind, theirs))
        except peer.Unavailable as error:
            return [Line(name=name, what=what, bar=bar, missing=str(error))]
        engine, url = await stack.enter_async_context(database(servers.POSTGRESQL, effort.rows))
        ours = await stack.enter_async_context(running(engine, Publisher(), url=url))
        ways = {"peer": beside.drainer(effort.peers), "ours": drains(ours, effort.rows)}
        taken = await alternate(ways, effort.few_rounds)
    found, spread = ratio(taken["peer"], taken["ours"])
    return [
        Line(
            name=name,
            what=what,
            bar=bar,
            measured=found,
            spread=spread,
            rates=rates(taken, {"ours": "ours", "peer": kind.name}),
            conditions=conditions(effort.rows, ours.pace, f"theirs: {effort.peers:,} rows, {TUNED[kind]}"),
        )
    ]


JOBS = [
    Job(
        f"peer-{kind.name}",
        f"PostgreSQL → nothing, against {kind.name}",
        partial(against, kind=kind, bar=bar),
        (servers.POSTGRESQL,),
        is_quick=False,
    )
    for kind, bar in ((peer.PYTHON_CQRS_OUTBOX, Bar(50)), (peer.FASTSTREAM_OUTBOX, Bar(15)))
]
