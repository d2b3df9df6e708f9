import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import cqrs

registry = cqrs.Registry()

class Order(cqrs.Command[int]):
    number: int

@registry.command_handler(name="order")
async def order(command: Order) -> int:
    return command.number

app = cqrs.bootstrap(registry=registry)

async def test_well(cqrs_harness):
    async with cqrs_harness(app) as t:
        assert await t.send(Order(number=1)) == 1

async def test_wrong(cqrs_harness):
    async with cqrs_harness(app) as t:
        assert await t.send(Order(number=1)) == 2

async def test_missing(cqrs_harness):
    async with cqrs_harness(app) as t:
        t.assert_sent(Order)
"""


@pytest.mark.slow
def test_a_failed_test_shows_its_story_once(pytester: pytest.Pytester):
    pytester.makepyfile(TESTS)
    # Blocked by its name and loaded by its module: whether it is installed makes no difference.
    outcome = pytester.runpytest_subprocess(
        "-p",
        "no:cqrs",
        "-p",
        "cqrs.pytest_plugin",
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-W",
        "error",
        "-rN",  # without the summary, in which CI repeats errors as a whole
    )
    outcome.assert_outcomes(passed=1, failed=2)
    outcome.stdout.fnmatch_lines(["*cqrs story*", "sent Order(number=1)", "  order"])
    assert outcome.stdout.str().count("cqrs story") == 1
    assert outcome.stdout.str().count("nothing happened") == 1


def test_loading_the_plugin_loads_nothing_else():
    source = (
        "import sys, pytest; before = set(sys.modules); import cqrs.pytest_plugin;"
        "print(sorted(name for name in set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cqrs', 'cqrs.pytest_plugin']"
