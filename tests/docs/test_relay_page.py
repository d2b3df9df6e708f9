"""The page about the relay, its models and the script that searches them name the same mistakes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "scripts/model").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/relay.md").read_text(encoding="utf-8")
IN_MODELS = {
    (path.stem, name)
    for path in (ROOT / "docs/models").glob("*.pml")
    for name in re.findall(r"MISTAKE_(\w+)", path.read_text(encoding="utf-8"))
}


def test_every_mistake_in_a_model_is_searched():
    assert set(re.findall(r'Mistake\("(\w+)", "(\w+)"', SCRIPT)) == IN_MODELS


def test_the_page_explains_every_mistake_by_its_name():
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", PAGE)) == {name for _, name in IN_MODELS}


def test_the_page_shows_every_search_of_the_script():
    for verdict, name in [("holds", r'    Search\("\w+", "(.*?)"'), ("refuted", r'Mistake\("\w+", "(\w+)"')]:
        [listed] = re.findall(
            r"^SEARCHES = .*?^\]" if verdict == "holds" else r"^MISTAKES = .*?^\]", SCRIPT, re.MULTILINE | re.DOTALL
        )
        for shown in re.findall(name, listed):
            words = shown if verdict == "holds" else shown.replace("_", " ").lower()
            assert re.search(rf"^(relay|floor) +{re.escape(words)} .* {verdict}$", PAGE, re.MULTILINE), shown
