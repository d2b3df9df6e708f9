"""The box office's own tests, run as its developer runs them."""

import subprocess
import sys

from tests.examples.shop import ROOT


def test_the_tests_of_the_example_pass():
    # Blocked by its name and loaded by its module: whether the plugin is installed makes no difference.
    plugin = ("-p", "no:cqrs", "-p", "cqrs.pytest_plugin", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "examples/testing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
