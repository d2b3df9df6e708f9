"""Retry policies: when a delivery that failed is tried again, and when it is given up."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OnDead = Literal["block", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Exponential backoff with jitter; all durations in seconds.

    `attempts` counts every try, the first included; 1 gives up at once, None never gives up. The n-th wait is
    `first * factor ** (n - 1)`, at most `longest`, shortened by a random share of up to `jitter` (0 to 1), so that
    what failed together does not come back together.
    """

    attempts: int | None = 8
    first: float = 1.0
    factor: float = 3.0
    longest: float = 900.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        """Refuse a policy that cannot be meant."""
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(
                f"Retry(attempts={self.attempts}): the first try counts, so at least 1 (or None: for ever)"
            )
        if not (self.first >= 0 and self.factor >= 1 and self.longest >= 0 and 0 <= self.jitter <= 1):
            raise ValueError(f"{self}: first and longest are at least 0, factor at least 1, jitter within 0 and 1")

    def wait(self, failures: int) -> float | None:
        """Return the seconds to wait after so many failures, or None when the event is to be given up."""
        if self.attempts is not None and failures >= self.attempts:
            return None
        try:
            wait = min(self.longest, self.first * self.factor ** min(failures - 1, 64))
        except OverflowError:
            wait = self.longest
        return wait * (1 - self.jitter * random.random())  # noqa: S311 - spreads load, guards nothing


Policies = Mapping[type[BaseException], Retry]
"""A policy for each type of exception; the nearest base class of the raised one decides."""


def policies(retry: Retry | Policies) -> Policies:
    """Return the policies of an option that may be a single one, which then holds for every exception."""
    return {BaseException: retry} if isinstance(retry, Retry) else retry


def policy_for(error: BaseException, own: Policies, default: Policies) -> Retry:
    """Return the policy of the nearest base class of the error's type, a handler's own before the application's."""
    for rules in (own, default):
        for base in type(error).__mro__:
            if base in rules:
                return rules[base]
    return Retry()
