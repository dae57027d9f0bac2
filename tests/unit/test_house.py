"""Rules of the house that a reader relies on."""

import ast
import re
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import fastchat_rs
from where import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(fastchat_rs.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
STUBS = sorted(PACKAGE.rglob("*.pyi"))


def imports(tree: ast.AST) -> set[str]:
    """Modules imported when the file runs; those for type checking only do not count."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}", *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        found |= imports(node)
    return found


def test_four_modules_import_the_engine() -> None:
    users = {path.name for path in FILES if "fastchat_rs._engine" in imports(ast.parse(path.read_text("utf-8")))}
    assert users == {"bridge.py", "convert.py", "device.py", "llm.py"}


def test_nothing_below_the_server_knows_it() -> None:
    for path in FILES:
        modules = {
            name for name in imports(ast.parse(path.read_text("utf-8"))) if name.startswith("fastchat_rs.server")
        }
        if "server" not in path.relative_to(PACKAGE).parts:
            # llm.py's async twins use the bridge; the command line starts the server.
            allowed = {
                "llm.py": "fastchat_rs.server.bridge",
                "cli.py": "fastchat_rs.server.serve",
                "ray.py": "fastchat_rs.server",
            }.get(path.name, "-")
            assert all(name.startswith(allowed) for name in modules), path


def test_nothing_unpickles_or_evaluates() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        assert not imports(tree) & {"pickle", "marshal", "shelve", "dill", "torch"}, path
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"eval", "exec", "compile"}, path


def test_files_are_small_and_say_what_they_own() -> None:
    lines = [len(path.read_text("utf-8").splitlines()) for path in FILES + STUBS]
    assert max(lines) < 500
    assert statistics.median(lines) <= 160
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_the_fuzz_workspace_is_locked_to_what_the_crates_ask_for() -> None:
    lock = tomllib.loads((REPOSITORY / "fuzz/Cargo.lock").read_text("utf-8"))
    # "name version" where a name alone would not do.
    locked = {
        package["name"]: {one.split()[0] for one in package.get("dependencies", ())} for package in lock["package"]
    }
    for name in ("fastchat-kernels", "fastchat-models", "fastchat-engine"):
        manifest = tomllib.loads((REPOSITORY / "crates" / name / "Cargo.toml").read_text("utf-8"))
        asked = {one for one, how in manifest["dependencies"].items() if not how.get("optional")}
        assert asked <= locked[name], name


def test_commands_in_the_documents_exist() -> None:
    """Targets of cargo and make, and files of Python, in every document."""
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    documents = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]
    commands = [command for path in documents for command in re.findall(r"`([^`\n]+)`", path.read_text("utf-8"))]
    found = 0
    for command in commands:
        words = command.split()
        if command.startswith("make "):
            missing = [word for word in words[1:] if word.islower() and f"\n{word}:" not in makefile]
        elif command.startswith("cargo ") and "-p" in words:
            crate = REPOSITORY / "crates" / words[words.index("-p") + 1]
            folders = {"--test": "tests", "--bench": "benches"}
            named = [(folders[flag], name) for flag, name in pairwise(words) if flag in folders]
            missing = [
                name
                for folder, name in named
                if not any((crate / folder / file).exists() for file in (f"{name}.rs", f"{name}/main.rs"))
            ]
        elif command.startswith(("pytest ", "python ")):
            files = [word for word in words[1:] if word.endswith(".py") or word.startswith(("tests/", "benches/"))]
            missing = [word for word in files if not (REPOSITORY / word).exists()]
        else:
            continue
        found += 1
        assert not missing, f"`{command}` names what is not there: {missing}"
    assert found > 40
