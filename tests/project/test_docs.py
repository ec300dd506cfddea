"""The documentation: the site builds without warnings, links lead somewhere, and commands and keys exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from markdown.extensions.toc import slugify
from ruamel.yaml import YAML

from mitoflow.cli import mitoflow

ROOT = Path(__file__).parents[2]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in OUTSIDE), *sorted((ROOT / "docs").rglob("*.md"))]
PRESENT = [page for page in PAGES if "CHANGELOG" not in page.name]  # it has the keys of earlier versions too
GLOSSARY = ROOT / "docs" / "glossary.md"
OLD_NAMES = "## Names of mitoflow 0.1\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode: a broken link or anchor, or a page outside the navigation, fails."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a browser fetches to show a page: scripts, style sheets, images, frames; not links to follow."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        names = ["href", "src"] if tag in ("link", "use", "image") else ["src", "data", "poster"]
        self.urls += [value for name in names if (value := values.get(name))]


@pytest.mark.slow
def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "glossary.html", "SECURITY.html"} <= {page.name for page in pages}
    fetched = [url for page in pages for url in Loaded(page).urls]
    assert any(url.endswith(".css") for url in fetched)
    assert [url for url in fetched if urlsplit(url).netloc] == []
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", styles) == []


def test_a_page_that_loads_a_script_from_elsewhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="https://a.example/"><script src="https://b.example/x.js"></script><link href="//c/x.css">'
    )
    assert [urlsplit(url).netloc for url in Loaded(page).urls] == ["b.example", "c"]


@pytest.mark.slow
def test_the_command_line_page_has_the_help_text_of_every_command(site: Path) -> None:
    page = (site / "command-line.html").read_text(encoding="utf-8")
    for path, command in commands(mitoflow, ()):
        assert f'id="{slugify(" ".join(path), "-")}"' in page
        for param in command.params:
            assert isinstance(param, click.Argument) or param.opts[0] in page


def anchors(page: Path) -> set[str]:
    return {slugify(heading, "-") for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)}


@pytest.mark.parametrize("name", OUTSIDE)
def test_links_outside_the_site_lead_to_files_and_headings(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        url = urlsplit(target)
        if url.scheme:
            continue
        path = ROOT / (url.path or name)
        assert path.is_file(), target
        assert not url.fragment or url.fragment in anchors(path), target


def commands(command: click.Command, parents: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and those below it, each with its path."""
    path = (*parents, str(command.name))
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if each := command.get_command(context, name):
                yield from commands(each, path)


def written(page: Path) -> Iterator[str]:
    """Yield the ``mitoflow`` commands in the blocks of a page, without what is optional around them."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))  # a command that goes on in the next line
    for line in re.findall(r"^    (.*)$", text, re.M):
        for part in re.split(r"(?:&&|;)(?=(?:[^']*'[^']*')*[^']*$)", line.partition(" # ")[0]):  # not between quotes
            if part.strip().startswith("mitoflow "):
                yield re.sub(r"[\[\]]", " ", part.strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_pages_exist_with_their_options(page: Path) -> None:
    known = dict(commands(mitoflow, ()))
    for line in written(page):
        words = shlex.split(line)
        path = max((path for path in known if tuple(words[: len(path)]) == path), key=len)
        assert len(path) > 1, line
        options = {option for param in known[path].params for option in param.opts} | {"--help", "--version"}
        assert {word for word in words if word.startswith("--")} <= options, line


def messages(page: Path) -> list[str]:
    """Return what `mitoflow` prints, as a page quotes it: indented, and more so where a line goes on."""
    text = re.sub(r"\n {8,}", " ", page.read_text(encoding="utf-8"))
    return re.findall(r"^    (?:mitoflow: )?((?:note|warning|\w+\.tif): .*)$", text, re.M)


def printable() -> set[re.Pattern[str]]:
    """Return a pattern for each text of the code, in which a group is what it fills in."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "%s" for part in parts]
            if isinstance(node, ast.JoinedStr | ast.Constant) and all(isinstance(text, str) for text in texts):
                pieces = re.split("%s", "".join(map(str, texts)))
                if sum(map(len, pieces)) > 5:
                    found.add(re.compile("(.*?)".join(map(re.escape, pieces))))
    return found


def is_printed(text: str, known: set[re.Pattern[str]]) -> bool:
    """Return whether the code has a text: what it fills in is short, or a text of the code again, or two of them."""
    for match in filter(None, (each.fullmatch(text) for each in known)):
        for filled in match.groups():
            halves = [(filled[:at], filled[at:]) for at, letter in enumerate(filled) if letter == ";"]
            if len(filled) > 30 and not (
                (filled != text and is_printed(filled, known))
                or any(all(is_printed(half, known) for half in each) for each in halves)
            ):
                break
        else:
            return True
    return False


@pytest.mark.slow
def test_messages_in_the_pages_are_those_of_the_code() -> None:
    known, quoted = printable(), messages(ROOT / "docs/faq.md")
    assert len(quoted) > 15
    assert [text for text in quoted if not is_printed(text, known)] == []
    assert not is_printed(quoted[0].replace("its origin", "its source"), known)


def keys(values: Any, prefix: str = "") -> set[str]:
    """Return the dotted keys of a YAML file, sections included."""
    found: set[str] = set()
    for key, value in values.items() if isinstance(values, dict) else ():
        found |= {prefix + key} | keys(value, f"{prefix}{key}.")
    return found


def current() -> tuple[set[str], set[str]]:
    """Return the dotted keys of ``params.yaml`` and of ``promotion.yaml``."""
    params, promotion = (YAML(typ="safe").load(ROOT / name) for name in ("params.yaml", "promotion.yaml"))
    return keys(params), keys(promotion)


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_in_the_pages_are_keys_of_params_yaml(page: Path) -> None:
    params, _ = current()
    sections = "|".join({key.partition(".")[0] for key in params})
    text = page.read_text(encoding="utf-8").partition(OLD_NAMES)[0]
    found = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?::[^`]*)?`", text))
    assert found - {"data.dvc"} <= params


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_glossary_has_each_word_once_in_alphabetical_order() -> None:
    words = [word.strip("`").lower() for word, _ in rows(GLOSSARY.read_text(encoding="utf-8").partition(OLD_NAMES)[0])]
    assert len(words) > 50
    assert words == sorted(set(words))


def test_old_names_are_gone_and_new_names_exist() -> None:
    params, promotion = current()
    table = rows(GLOSSARY.read_text(encoding="utf-8").partition(OLD_NAMES)[2])
    assert len(table) > 10
    for old, new, change in table:
        names = set(re.findall(r"`([\w.]+)[:`]", old))
        (name,) = re.findall(r"`([\w.]+)`", new)
        kept = promotion if "promotion.yaml" in change else params
        assert name in kept
        assert names == {name} or not names & kept
