"""MkDocs hook: puts every record of docs/decisions into the navigation, where mkdocs.yml says `decisions/*`."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Replace the pattern by the records, in the order of their numbers."""
    docs = Path(config["docs_dir"])
    records = [str(path.relative_to(docs)) for path in sorted(docs.glob("decisions/*.md"))]
    config["nav"] = [{"Decisions": records} if item == {"Decisions": "decisions/*"} else item for item in config["nav"]]
    return config
