"""What a harness raises by itself."""

from cqrs.errors import CqrsError


class NotEnded(CqrsError, AssertionError):
    """What a test caused has not ended: a handler hangs, or events cause each other for ever; it shows which."""
