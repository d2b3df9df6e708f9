"""Imports the modules of packages by walking their files, and says what it could not import and why."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cqrs.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class Found:
    """A module file below a scanned path, under the name that it is imported by."""

    name: str
    file: Path


def scan(paths: Iterable[str], problems: list[Problem], exclude: Sequence[str] = ()) -> list[str]:
    """Import every module of the named packages or modules; returns the names, `__main__` for the running script.

    Files are walked, so a folder without `__init__.py` is noticed, which Python's own walk silently skips. A module
    that fails to import is reported with its traceback, and so is a file that is loaded under two names.
    """
    loaded = _loaded_files()
    names = []
    for path in paths:
        for found in _modules(path, problems, exclude):
            name = _load(found, loaded, problems)
            if name is not None:
                names.append(name)
    return list(dict.fromkeys(names))


def script_name() -> str:
    """Return the name that `__main__` goes by: its module path under `python -m`, else its file's stem."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name.removesuffix(".__main__"))
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _modules(path: str, problems: list[Problem], exclude: Sequence[str]) -> Iterator[Found]:
    if not _is_dotted(path, problems):
        return
    try:
        spec = importlib.util.find_spec(path)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a parent package that is imported may raise anything
        spec, reason = None, f": {type(error).__name__}: {error}"
    else:
        reason = ""
    if spec is None:
        looked = ", ".join(sys.path[:4])
        cure = "Give the dotted name of a package that can be imported from here."
        problems.append(Problem(f"There is no package '{path}' to scan{reason}; looked in {looked}, ...", cure))
    elif spec.submodule_search_locations is None:
        yield Found(path, Path(spec.origin or ""))
    else:
        for folder in spec.submodule_search_locations:
            yield from _walk(Path(folder), path, problems, exclude)


def _is_dotted(path: str, problems: list[Problem]) -> bool:
    """Whether a path is a dotted name; a URL or a file's path that took its place is a problem."""
    if "://" in path:  # not shown: it may hold a password
        what = f"A URL, {path.partition('://')[0]}://, is where the name of a package to scan belongs"
        problems.append(Problem(what, "Pass it as database= or broker=."))
    elif "/" in path or path.endswith(".py"):
        dotted = path.removesuffix(".py").strip("./").replace("/", ".")
        problems.append(Problem(f"'{path}' is the path of a file, and scan takes dotted names", f"Pass '{dotted}'."))
    else:
        return True
    return False


def _walk(folder: Path, name: str, problems: list[Problem], exclude: Sequence[str]) -> Iterator[Found]:
    if name in exclude:
        return
    if (folder / "__init__.py").is_file():
        yield Found(name, folder / "__init__.py")
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__")):
            continue
        inner = f"{name}.{entry.stem}"
        if not entry.stem.isidentifier() or inner in exclude:
            continue
        if entry.suffix == ".py":
            yield Found(inner, entry)
        elif entry.is_dir():
            if (entry / "__init__.py").is_file():
                yield from _walk(entry, inner, problems, exclude)
            elif any(entry.glob("*.py")):
                cure = f"Add an empty __init__.py, or pass exclude=('{inner}',) to bootstrap."
                problems.append(Problem(f"The folder {entry} has modules, but no __init__.py, and was skipped", cure))


def _load(found: Found, loaded: dict[str, str], problems: list[Problem]) -> str | None:
    """Import one module; returns the name that it is loaded under."""
    file = str(found.file.absolute())
    other = loaded.get(file, found.name)
    if other == "__main__" and found.name not in sys.modules:
        return other
    if other != found.name:
        cure = "Import it by one name everywhere, and start a module of a package with `python -m package.module`."
        problems.append(Problem(f"{file} is loaded under two names, '{other}' and '{found.name}'", cure))
        return None
    try:
        importlib.import_module(found.name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a module raises is the problem to report
        trace = "".join(traceback.format_exception(error.with_traceback(_below_import(error)))).rstrip()
        cure = "Mend it, or leave the module out with exclude=(...)."
        problems.append(Problem(f"Module {found.name} cannot be imported", f"{cure}\n{trace}", str(found.file)))
        return None
    loaded[file] = found.name
    return found.name


def _below_import(error: BaseException) -> TracebackType | None:
    """Return the traceback from the module's own line on, without the import system's."""
    here = error.__traceback__
    while here is not None and here.tb_next is not None and _is_machinery(here.tb_frame.f_code.co_filename):
        here = here.tb_next
    return here


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename.endswith(("importlib/__init__.py", "cqrs/scan.py"))


def _loaded_files() -> dict[str, str]:
    files: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            files.setdefault(str(Path(file).absolute()), name)
    return files
