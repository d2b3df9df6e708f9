"""What becomes of a row whose delivery failed, by the policy of who was to take it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from traceback import format_exception

from cqrs.outbox.publisher import Failed, Fate, Outcome
from cqrs.outbox.rows import Claimed, Verdict
from cqrs.retry import Retry

log = logging.getLogger(__name__)

ERROR_LIMIT = 4000
LONGEST_WAIT = 366 * 86400.0
"""Seconds that a policy may put off a retry: further, some database has no date."""

End = Callable[[str, BaseException, int], tuple[float | None, bool]]
"""Of a destination, an error and how many failures: seconds to wait (None: dead), and whether a dead row blocks."""


class Judge:
    """Judges rows by an `End`, and tells of what it has judged."""

    def __init__(self, end: End) -> None:
        self._end = end

    def judge(self, row: Claimed, outcome: Outcome) -> Verdict | None:
        """Return the verdict on a row that failed, or was begun and given up; None where there is nothing to judge."""
        if isinstance(outcome, Failed):
            wait, blocks = self._end_of(row, outcome.error)
            error = _storable("".join(format_exception(outcome.error))[-ERROR_LIMIT:])
            return Verdict(row, error, None if outcome.final else wait, blocks)
        if outcome is Fate.OVERDUE:
            return Verdict(row, "It was given up at its claim's deadline.", 0.0, blocks=True, counts=False)
        return None

    def _end_of(self, row: Claimed, error: BaseException) -> tuple[float | None, bool]:
        """Ask the policy; in the place of one that fails itself stands the default, or the row would never end."""
        try:
            wait, blocks = self._end(row.strand[0], error, row.attempts + 1)
            return None if wait is None else min(wait, LONGEST_WAIT), blocks
        except Exception:
            log.exception("The retry policy of %s has failed, so it gets the default.", row.envelope.destination)
            return Retry().wait(row.attempts + 1), True

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Log each: a death is an error."""
        for verdict in verdicts:
            envelope = verdict.row.envelope
            what = f"{envelope.type} {envelope.message_id} to {envelope.destination}"
            reason = cause_of(verdict.error)
            if verdict.wait is None:
                log.error("%s is dead at attempt %d: %s", what, verdict.attempts, reason)
            else:
                log.warning("%s failed, tried again in %.1f s: %s", what, verdict.wait, reason)


def cause_of(error: str) -> str:
    """Return the line that names the exception: the first one behind a traceback's last frame, if it is one."""
    frames, _, last = error.rpartition('\n  File "')
    behind = (line for line in last.splitlines()[1:] if line and not line.startswith(" "))
    return next(behind, "") if frames else error.partition("\n")[0]


def _storable(text: str) -> str:
    """Return a text that every database takes: without NUL, and without half a surrogate pair."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
