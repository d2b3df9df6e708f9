"""The smallest service, as the README has it."""

import asyncio
import shutil
from pathlib import Path

from tests.docs.document import read_blocks
from tests.examples.shop import ROOT
from tests.examples.web import LOOK, PATIENCE, serving, tail

HELLO = ROOT / "examples" / "hello" / "hello.py"


async def test_it_greets_and_remembers(tmp_path: Path):
    shutil.copy(HELLO, tmp_path)
    log = tmp_path / "log"
    async with serving("hello:api", cwd=tmp_path, log=log, PYTHONWARNINGS="error") as client:
        answer = await client.post("/greetings", json={"name": "Ada"})
        assert (answer.status_code, answer.json()) == (200, "Hello, Ada!")
        assert (await client.post("/greetings", json={})).status_code == 422
        async with asyncio.timeout(PATIENCE):
            while "greeted Ada" not in tail(log):  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(LOOK)


def test_the_readme_shows_this_file():
    shown = [block.source for block in read_blocks((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert f"# hello.py\n{HELLO.read_text()}" in shown
