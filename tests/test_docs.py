"""The pages agree with the code: examples run, links resolve, names and tables are the same."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from pydantic import BaseModel
from sqlalchemy import text

import sessionsdb
from sessionsdb import SessionsDB
from sessionsdb._version import __version__
from sessionsdb.cli.app import app
from sessionsdb.operations import mailbox
from sessionsdb.schema import metadata

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
NAMES = [page.name for page in PAGES]
CHANGELOG = ROOT / "CHANGELOG.md"
API = ROOT / "docs" / "api.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
SCHEMA = ROOT / "docs" / "schema.md"
MESSAGES = ROOT / "docs" / "messages.md"
BY_HAND = [page for page in PAGES if page.name != "cli.md"]

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of code: the word after its fence, its first line in the page, its text."""

    kind: str
    line: int
    text: str


def blocks(page: Path, kind: str) -> list[Block]:
    source = page.read_text()
    return [
        Block(found[1], source.count("\n", 0, found.start()) + 2, found[2])
        for found in _FENCE.finditer(source)
        if found[1] == kind
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def single_spaced(source: str) -> str:
    return re.sub(r"\s+", " ", source)


# ---- code ----------------------------------------------------------------------------------------


def programs() -> Iterator[Any]:
    for page in PAGES:
        for block in blocks(page, "python"):
            if "asyncio.run(" in block.text:
                yield pytest.param(block, id=f"{page.name}:{block.line}")


@pytest.mark.parametrize("program", list(programs()))
def test_a_program_runs_without_a_change(program: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_first_program_prints_the_output_in_the_readme(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    done = subprocess.run(
        [sys.executable, "-c", blocks(readme, "python")[0].text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == blocks(readme, "text")[0].text


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
async def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    """Blocks that are not programs share their variables, and an open database with one session."""
    names: dict[str, Any] = {name: getattr(sessionsdb, name) for name in sessionsdb.__all__}
    async with SessionsDB(f"sqlite:///{tmp_path}/docs.db") as db:
        names |= {"db": db, "asyncio": asyncio}
        await db.broker.register("chat-1", channel="cli", peer="ada")
        for block in blocks(page, "python"):
            if "asyncio.run(" not in block.text:
                await run_part(page, block, names)


async def run_part(page: Path, block: Block, names: dict[str, Any]) -> None:
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_block_that_needs_a_server_compiles(page: Path) -> None:
    for block in blocks(page, "python no-run"):
        compile(block.text, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def test_the_queries_of_the_schema_page_run(tmp_path: Path) -> None:
    queries = blocks(SCHEMA, "sql")
    assert len(queries) >= 2
    async with (
        SessionsDB(f"sqlite:///{tmp_path}/docs.db") as db,
        db.engine.connect() as connection,
    ):
        for query in queries:
            for statement in query.text.split(";\n"):
                if statement.strip() not in ("", "BEGIN", "COMMIT"):
                    await connection.execute(text(statement))


# ---- links and names -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_inside_the_repository_resolve(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), link


@pytest.mark.parametrize("page", BY_HAND, ids=[page.name for page in BY_HAND])
def test_named_tests_and_files_exist(page: Path) -> None:
    known = {
        name
        for file in ROOT.glob("tests/**/*.py")
        for name in [file.stem, *re.findall(r"def (test_\w+)", file.read_text())]
    }
    named = set(re.findall(r"`(test_\w+)(?:\.py)?`", prose(page)))
    assert named <= known, named - known
    for path in re.findall(r"`((?:sessionsdb|tests|migrations|docs)/[\w./]+)`", prose(page)):
        assert (ROOT / path).exists(), path


def commands() -> Iterator[Any]:
    for page in BY_HAND:
        for block in blocks(page, "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith("sessionsdb "):
                    yield pytest.param(line, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_in_a_block_exists_with_its_options(line: str) -> None:
    program: Any = typer.main.get_command(app)
    words = line.partition("#")[0].split()
    options = {"--help"}.union(*(parameter.opts for parameter in program.params))
    command = next((word for word in words if word in program.commands), None)
    if command is not None:
        for parameter in program.commands[command].params:
            options.update(parameter.opts, parameter.secondary_opts)
    else:
        assert words[1] in options, "no such command"
    assert {word for word in words if word.startswith("-") and word != "-"} <= options


@pytest.mark.parametrize("page", BY_HAND, ids=[page.name for page in BY_HAND])
def test_a_named_option_exists(page: Path) -> None:
    program: Any = typer.main.get_command(app)
    # The last one is of the plugin of pytest.
    known = {"--help", "--sessionsdb"} | {
        option
        for command in [program, *program.commands.values()]
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    lines = [line for line in page.read_text().splitlines() if re.search(r"sessionsdb\b", line)]
    named = {word for line in lines for word in re.findall(r"(?<![\w-])--[a-z-]+", line)}
    named |= set(re.findall(r"`(--[a-z-]+)", prose(page)))
    assert named <= known, named - known


def test_the_makefile_has_the_commands_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"make (\w+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_every_extra_is_in_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    for extra in project.get("optional-dependencies", {}):
        assert f"[{extra}]" in readme, extra


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", CHANGELOG.read_text(), re.MULTILINE)


@pytest.mark.parametrize("heading", ["The walk of a send", "The walk of a commit"])
def test_a_walk_names_files_and_names_of_the_package(heading: str) -> None:
    section = ARCHITECTURE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    package = ROOT / "sessionsdb"
    names = set(re.findall(r"\w+", "".join(file.read_text() for file in package.rglob("*.py"))))
    quoted = re.findall(r"`([\w./]+)`", section)
    assert len(re.findall(r"^\d+\. ", section, re.MULTILINE)) == 10
    for word in quoted:
        if word.endswith(".py"):
            assert (package / word.removeprefix("sessionsdb/")).exists(), word
        else:
            assert set(word.split(".")) <= names, word


def test_the_architecture_page_names_files_of_the_package() -> None:
    files = [
        file.relative_to(ROOT).as_posix()
        for pattern in ("sessionsdb/**/*.py", "tests/*.py")
        for file in ROOT.glob(pattern)
    ]
    for name in re.findall(r"`([\w/]+\.py)`", prose(ARCHITECTURE)):
        assert any(f"/{file}".endswith(f"/{name}") for file in files), name


# ---- the public API ------------------------------------------------------------------------------


def signature(call: Any, name: str) -> str:
    """``name(a, *, b=None)``, as docs/api.md writes it."""
    parameters = []
    starred = False
    for parameter in inspect.signature(call).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            parameters.append("*")
        default = parameter.default
        if default is parameter.empty:
            parameters.append(parameter.name)
        elif default is ...:
            parameters.append(f"{parameter.name}=...")
        elif isinstance(default, BaseModel):
            parameters.append(f"{parameter.name}={type(default).__name__}()")
        else:
            parameters.append(f"{parameter.name}={default!r}".replace("'", '"'))
    return f"{name}({', '.join(parameters)})"


def methods(kind: type) -> dict[str, Any]:
    return {
        name: call
        for name, call in vars(kind).items()
        if inspect.isfunction(call) and not name.startswith("_")
    }


def public_calls() -> Iterator[Any]:
    for kind, prefix in (
        (sessionsdb.SessionStore, "db.store."),
        (sessionsdb.SessionBroker, "db.broker."),
        (sessionsdb.SessionsDB, "db."),
        (sessionsdb.Worker, "worker."),
        (sessionsdb.Turn, "turn."),
    ):
        for name, call in methods(kind).items():
            yield pytest.param(signature(call, prefix + name), id=prefix + name)
    yield pytest.param(signature(SessionsDB.__init__, "SessionsDB"), id="SessionsDB")
    yield pytest.param(signature(sessionsdb.Reply, "Reply"), id="Reply")


@pytest.mark.parametrize("call", list(public_calls()))
def test_a_signature_is_documented(call: str) -> None:
    page = single_spaced(API.read_text())
    # A signature may span several lines.
    assert re.sub(r"([(,]) ", r"\1", call) in re.sub(r"([(,]) ", r"\1", page), call


@pytest.mark.parametrize("name", sessionsdb.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", API.read_text())


def values() -> Iterator[Any]:
    for name in sessionsdb.__all__:
        kind = getattr(sessionsdb, name)
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield pytest.param(kind, id=name)


@pytest.mark.parametrize("kind", list(values()))
def test_a_value_is_documented_with_its_fields(kind: type[BaseModel]) -> None:
    [row] = re.findall(rf"^\| `{kind.__name__}` \|(.*)\|$", API.read_text(), re.MULTILINE)
    inherited = {name for base in kind.__mro__[1:] for name in getattr(base, "model_fields", {})}
    for name in kind.model_fields:
        assert name in inherited or re.search(rf"\b{name}\b", row), name


def errors() -> list[str]:
    return [
        name
        for name in sessionsdb.__all__
        if inspect.isclass(kind := getattr(sessionsdb, name)) and issubclass(kind, Exception)
    ]


@pytest.mark.parametrize("name", errors())
def test_an_error_is_documented(name: str) -> None:
    assert re.search(rf"^\| `{name}`", API.read_text(), re.MULTILINE)


def test_the_limits_are_documented_with_their_defaults() -> None:
    page = API.read_text()
    for name, field in sessionsdb.Limits.model_fields.items():
        assert f"| `{name}` | {field.default:,} |" in page, name


@pytest.mark.parametrize("name", ["session", "settings", "prompt", "text", "staged"])
def test_a_property_of_a_turn_is_documented(name: str) -> None:
    assert f"turn.{name}" in API.read_text()


def test_a_field_of_a_turn_is_documented() -> None:
    for name in inspect.get_annotations(sessionsdb.Turn):
        assert name.startswith("_") or f"turn.{name}" in API.read_text(), name


# ---- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", metadata.tables)
def test_a_table_is_documented_with_its_columns_and_indices(table: str) -> None:
    page = SCHEMA.read_text()
    section = re.split(r"^## ", page.partition(f"## {table}\n")[2], flags=re.MULTILINE)[0]
    assert section, f"docs/schema.md has no section on {table}"
    named = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    columns = [column.name for column in metadata.tables[table].columns]
    indices = {str(index.name) for index in metadata.tables[table].indexes}
    assert named[: len(columns)] == columns
    assert set(named[len(columns) :]) == indices


# ---- the state machine ---------------------------------------------------------------------------


def docstring_tables() -> list[list[list[str]]]:
    """The tables in the docstring of the state machine, as rows of cells."""
    tables: list[list[list[str]]] = []
    spans: list[tuple[int, int | None]] = []
    rulers = 0
    for line in textwrap.dedent(mailbox.__doc__ or "").splitlines():
        if line.startswith("==="):
            rulers += 1
            if rulers % 3 == 1:
                starts = [found.start() for found in re.finditer("=+", line)]
                spans = list(zip(starts, [*starts[1:], None], strict=True))
                tables.append([])
        elif rulers % 3 and line:
            cells = [line[start:end].strip() for start, end in spans]
            if cells[0]:
                tables[-1].append(cells)
            else:  # the row before goes on
                row = tables[-1][-1]
                row[:] = [f"{a} {b}".strip() for a, b in zip(row, cells, strict=True)]
    return tables


def page_tables(page: Path, heading: str) -> list[list[str]]:
    section = re.split(r"^#+ ", page.read_text().partition(f"## {heading}\n")[2], flags=re.M)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in cells if not set("".join(row)) <= set("-: ")]


def plain(table: list[list[str]]) -> list[list[str]]:
    return [[cell.replace("`", "") for cell in row] for row in table]


@pytest.mark.parametrize(("index", "heading"), [(0, "The states of a mailbox"), (1, "Transitions")])
def test_the_page_and_the_code_have_the_same_state_machine(index: int, heading: str) -> None:
    code = docstring_tables()
    assert len(code) == 2
    assert plain(page_tables(MESSAGES, heading)) == plain(code[index])


@pytest.mark.parametrize("status", ["pending", "running", "done", "dead", "cancelled"])
def test_every_status_of_a_message_is_explained(status: str) -> None:
    assert f"| `{status}` |" in MESSAGES.read_text()
