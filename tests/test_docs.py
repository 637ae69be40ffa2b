"""The documents: links lead somewhere, code runs, names exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pxfast
from bench import run
from bench._libraries import load
from pxfast.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"`((?:pxfast|csrc|tests|bench|docs|examples)/[\w./-]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def python_of(path: Path) -> str:
    blocks = FENCED.findall(text_of(path))
    return "\n".join(code for language, code in blocks if language == "python")


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(path)), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings]
    return {word.replace(" ", "-") for word in words}


def dead_links(path: Path) -> list[str]:
    """Relative links of a document whose file or heading does not exist."""
    dead = []
    for link in LINK.findall(FENCED.sub("", text_of(path))):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(link)
    return dead


def unknown_names(text: str) -> list[str]:
    """Names like pxfast.a.b in a text that the package does not have."""
    load("torch")  # and declares what the imports of some libraries need
    unknown = []
    for name in sorted(set(re.findall(r"\bpxfast((?:\.[A-Za-z]\w*)+)", text))):
        found: object = pxfast
        for part in name[1:].split("."):
            try:
                found = getattr(found, part, None)
            except ImportError:  # an adapter whose library is not installed
                break
        if found is None and not (ROOT / "pxfast" / f"{name[1:].replace('.', '/')}.py").exists():
            unknown.append(f"pxfast{name}")
    return unknown


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_public_names_exist(path: Path) -> None:
    assert unknown_names(text_of(path)) == []


@pytest.mark.parametrize(
    "name", ["README.md", "docs/criteria.md", "docs/extending.md", "docs/integrations.md"]
)
def test_code_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    code = python_of(ROOT / name)
    assert "import pxfast" in code
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec({code!r})"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_dead_links_and_unknown_names_are_seen(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("## A heading, twice\n", encoding="utf-8")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md#a-heading-twice) [y](https://example.org/z) [u](gone.md) [v](b.md#gone)\n",
        encoding="utf-8",
    )
    assert dead_links(page) == ["gone.md", "b.md#gone"]
    assert unknown_names("`pxfast.score` and `pxfast.scorn`, `pxfast.reference.px`") == [
        "pxfast.scorn"
    ]


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(path), re.MULTILINE))
        assert named <= targets, path.name


def test_commands_in_documents_parse() -> None:
    """Of pxfast in code blocks, of benchmarks anywhere, in the Makefile too."""
    texts = [text_of(path) for path in DOCUMENTS]
    blocks = "\n".join(code for text in texts for _, code in FENCED.findall(text))
    own = re.findall(r"^pxfast (.+)$", blocks, re.MULTILINE)
    everything = "\n".join([*texts, text_of(ROOT / "Makefile").replace("\\\n", " ")])
    benchmarks = set(re.findall(r"python bench/run\.py ([a-z][^`\n|]*)", everything))
    assert len(own) >= 4 and len(benchmarks) >= 20
    for arguments in own:
        build_parser().parse_args(shlex.split(arguments))
    parser = run.parser()
    for arguments in benchmarks:
        parser.parse_args(shlex.split(arguments))


def test_files_named_in_documents_exist() -> None:
    for path in (ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "docs" / "extending.md"):
        named = set(FILE_NAME.findall(text_of(path)))
        missing = sorted(name for name in named if not (ROOT / name).exists())
        assert missing == [], path.name
