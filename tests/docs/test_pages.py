"""The commands of tutorials and how-tos are run as printed, each page in a directory and a network of its own (`make docs-test`)."""

import os
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, Page, Run, isolation, matches, parse
from tests.integration.embedded.conftest import can_run  # noqa: F401
from tests.integration.embedded.service import is_zombie

NOT_RUN = 15  # blocks that tests cannot run, each with a reason; it may only become less

ALL = [parse(path) for path in PAGES]
HERE = [page for page in ALL if not page.is_for_a_cluster and any(block.kind == "run" for block in page.blocks)]


def alone(page: Page) -> list[pytest.MarkDecorator]:
    """SeaweedFS has sockets in /tmp with the numbers of its ports, so pages that start it take turns (`--dist loadgroup`)."""
    return [pytest.mark.xdist_group("weed")] if any("weed server" in block.text for block in page.blocks) else []


@pytest.mark.docs
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name, marks=alone(page)) for page in HERE])
def test_the_commands_of_a_page(page: Page, can_run: None, tmp_path: Path) -> None:  # noqa: F811
    prefix = isolation()
    if prefix is None:
        pytest.skip("needs a network namespace: `unshare --net` is not permitted")
    directory = tmp_path / "page"
    directory.mkdir()
    with Run(page, directory, prefix) as run:
        run.all()


def test_the_number_of_blocks_that_are_not_run() -> None:
    found = [
        f"{page.name}:{block.line}: {block.detail}" for page in ALL for block in page.blocks if block.kind == "not run"
    ]
    assert len(found) == NOT_RUN, "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "output", "expected"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\nc\n", False),
        ("…\nid … COMPLETE", "first\nid 7 COMPLETE\n", True),
        ("id …\n…\nend", "id 7\nend", True),
        ("…COMPLETE…", "\x1b[32mCOMPLETE\x1b[0m 0.7 s\n", True),
        ("…COMPLETE…", "EXECUTOR_ERROR\n", False),
    ],
)
def test_an_ellipsis_stands_for_anything(pattern: str, output: str, expected: bool) -> None:
    assert matches(pattern, output) is expected


def test_a_page_that_fails_leaves_no_process_behind(tmp_path: Path) -> None:
    """The shell ends with the failure, so what it had started has lost its parent."""
    path, directory = tmp_path / "page.md", tmp_path / "page"
    background = "<!-- run: in the background -->\n```bash\nsleep 600 &\necho $!\nwait\n```\n\n```text\n…\n```\n\n"
    path.write_text(f"{background}```bash\nps -o pid= -C sleep >all\nfalse\n```\n")
    directory.mkdir()
    with pytest.raises(AssertionError, match="exit code 1"), Run(parse(path), directory) as run:
        run.all()
    started = {int(pid) for pid in (directory / "all").read_text().split()}
    left = {pid for pid in started if not is_zombie(pid) and os.path.realpath(f"/proc/{pid}/cwd") == str(directory)}
    assert started and not left


def test_what_a_page_says_about_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# Page\n<!-- page: cluster -->\n<!-- file: a.json -->\n```json\n{}\n```\n\n```bash\ntrue\n```\n\n```text\nout\n```\n"
        "<!-- not run: needs a GPU -->\n```bash\nfalse\n```\nText.\n```text\nno output\n```\n"
    )
    page = parse(path)
    assert page.is_for_a_cluster
    assert [(b.kind, b.detail, b.output) for b in page.blocks] == [
        ("file", "a.json", None),
        ("run", "", "out\n"),
        ("not run", "needs a GPU", None),
    ]
    path.write_text("```console\n$ true\n```\n")
    with pytest.raises(ValueError, match=r"page.md:1: use ```bash"):
        parse(path)


def test_output_that_differs_fails(can_run: None, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "page.md"
    for text, message in (
        ("```bash\necho a\n```\n\n```text\nb\n```\n", "the page shows"),
        ("```bash\nfalse\necho unreachable\n```\n", "exit code 1"),
        ("<!-- run: fails -->\n```bash\ntrue\n```\n", "exit code 99"),
    ):
        path.write_text(text)
        page = Page(PAGES[0], (), parse(path).blocks)
        directory = tmp_path / message.replace(" ", "-")
        directory.mkdir()
        with Run(page, directory) as run, pytest.raises(AssertionError, match=message):
            run.all()
