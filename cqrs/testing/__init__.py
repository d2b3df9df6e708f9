"""Tests of an application: it runs whole, on a temporary file, and a test waits for what it caused, not for time."""

from cqrs.testing.acting import Harness
from cqrs.testing.errors import NotEnded
from cqrs.testing.harness import harness
from cqrs.testing.story import Attempt, Published

__all__ = ["Attempt", "Harness", "NotEnded", "Published", "harness"]
