"""${message}."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op as current_op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade(op: Any = current_op, prefix: str = "cqrs_", schema: str | None = None) -> None:
    """Describe the change."""
    ${upgrades if upgrades else "pass"}


def downgrade(op: Any = current_op, prefix: str = "cqrs_", schema: str | None = None) -> None:
    """Undo the change."""
    ${downgrades if downgrades else "pass"}
