"""The viewer of logs in a browser: windows of logs of any size, followed while they grow, searched, with nothing that their text can do.

POIESIS_TEST_LOG_BYTES is the size of the large log: `make browser-large-log` uses a gigabyte.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import pytest

from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, TaskLog
from tests.browser.log_samples import Written, settings_of
from tests.browser.samples import completed
from tests.browser.waiting import eventually

SIZE = int(os.environ.get("POIESIS_TEST_LOG_BYTES", "30000000"))
LINE = 20  # bytes of each line of the large log
MOST_TEXT = 5 * 256 * 1024  # characters that the page may hold
COLOURED = (
    b"\x1b[1m[12:00:01]\x1b[0m \x1b[32mINFO\x1b[0m  reading /in/reads_1.fq.gz\n"
    b"\x1b[1m[12:00:04]\x1b[0m \x1b[33mWARN\x1b[0m  112 reads are shorter than 30 bases\n"
    b"\x1b[1m[12:00:09]\x1b[0m \x1b[38;5;196mERROR\x1b[0m cannot open \x1b[4m/ref/GRCh38.fa.0123\x1b[0m: No such file or directory\n"
)


@pytest.fixture
def site(make_site, tmp_path):
    return make_site(logs=settings_of(tmp_path))


def running(site: Any, **more: Any) -> Any:
    task_id = site.create("follow me", **more)
    site.move(task_id, State.INITIALIZING, State.RUNNING)
    return task_id


def text_of(browser: Any, stream: str = "stdout") -> str:
    return str(
        browser.execute_script(
            "return document.querySelector(`[data-stream=${arguments[0]}] .log`).textContent", stream
        )
    )


MARKED = """
const mark = document.querySelector('.log mark');
return mark?.nextSibling && mark.textContent + mark.nextSibling.textContent.split('\\n')[0];
"""
SCROLL = """
const log = document.querySelector('.log');
log.scrollTop = arguments[0] === 'start' ? 0 : log.scrollHeight;
const text = log.textContent.trimEnd(); // the numbers of the first and the last line of the large log
return [text.slice(0, text.indexOf('\\n')), text.slice(text.lastIndexOf('\\n') + 1)].map((line) => Number(line.split(' ')[1]));
"""
SCROLL_UP = """
document.querySelector('.log').scrollTop = 0;
return document.querySelector('.chunk') !== window.first;
"""
MARK_IS_IN_VIEW = """
const mark = document.querySelector('.log mark').getBoundingClientRect(), log = document.querySelector('.log').getBoundingClientRect();
return mark.top >= log.top && mark.bottom <= log.bottom;
"""


def test_a_log_is_followed_from_its_first_byte_to_its_end(site, browser):
    task_id = running(site)
    log = Written(site.parts.log_store, task_id)
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs")
    assert "Nothing has been written yet." in browser.find_element("css selector", "[data-stream=stdout]").text
    log.add(b"first line\nhalf a ")
    eventually(lambda: "half a " in text_of(browser), "the first bytes")
    log.add(b"line\n" + b"".join(b"row %06d\n" % n for n in range(60_000)))
    eventually(lambda: "row 059999" in text_of(browser), "what came later")
    assert "half a line" in text_of(browser) or "first line" not in text_of(browser)
    log.add(b"the last line\n")
    log.end()
    site.move(task_id, State.COMPLETE)
    eventually(lambda: text_of(browser).endswith("row 059999\nthe last line\n"), "the end")
    scrolled = "const l = document.querySelector('.log'); return l.scrollHeight - l.scrollTop - l.clientHeight < 50"
    eventually(lambda: browser.execute_script(scrolled), "the end in view")


@pytest.mark.timeout(900)
def test_a_large_log_is_seen_everywhere_and_the_page_stays_small(site, browser):
    task_id = running(site)
    log = Written(site.parts.log_store, task_id)
    lines = SIZE // LINE
    needle = lines * 7 // 10
    for begin in range(0, lines, 400_000):
        block = b"".join(b"line %014d\n" % n for n in range(begin, min(begin + 400_000, lines)))
        if begin <= needle < begin + 400_000:
            block = block.replace(b"line %014d" % needle, b"NEEDLE %012d" % needle)
        log.add(block)
    log.end()
    site.move(task_id, State.COMPLETE)
    assert log.size == lines * LINE
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs?stream=stdout")
    most = 0

    def check() -> list[int]:
        """The numbers of the lines that the page holds."""
        nonlocal most
        text = text_of(browser)
        most = max(most, len(text))
        numbers = [int(line.split()[1]) for line in text.splitlines()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "lines are missing or doubled"
        return numbers

    def later(last: int) -> None:
        eventually(lambda: browser.execute_script(SCROLL, "end")[1] > last, f"lines after {last}")

    def earlier(first: int) -> None:
        eventually(lambda: browser.execute_script(SCROLL, "start")[0] < first, f"lines before {first}")

    eventually(lambda: f"{lines - 1:014d}" in text_of(browser), "the end")
    check()
    began = time.monotonic()
    browser.find_element("css selector", ".to-start").click()
    eventually(lambda: f"line {0:014d}" in text_of(browser), "the start")
    for _ in range(12):  # more than the page keeps
        later(check()[-1])
    assert check()[0] > 0
    while first := check()[0]:  # read once: the page may load more between two reads
        earlier(first)
    browser.execute_script(
        "const s = document.querySelector('.position'); s.value = 500; s.dispatchEvent(new Event('change'))"
    )
    eventually(lambda: abs(int(text_of(browser).split()[1]) / lines - 0.5) < 0.05, "the middle")
    check()
    moved = time.monotonic() - began
    began = time.monotonic()
    browser.find_element("css selector", ".to-start").click()
    box = browser.find_element("css selector", ".needle")
    box.send_keys("needle\n")
    eventually(lambda: browser.execute_script(MARKED), "the match", 300)
    assert browser.execute_script(MARKED) == f"NEEDLE {needle:012d}"
    eventually(lambda: browser.execute_script(MARK_IS_IN_VIEW), "the match in view")
    check()
    searched = time.monotonic() - began
    browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    heap = browser.execute_cdp_cmd("Runtime.getHeapUsage", {})["usedSize"]  # performance.memory is rounded and old
    print(
        f"{log.size} bytes: moved in {moved:.1f} s, found in {searched:.1f} s, at most {most} characters, heap {heap}"
    )
    assert most < MOST_TEXT
    assert heap < 64_000_000


def test_the_next_and_the_previous_match_are_found_in_any_case(site, browser):
    task_id = running(site)
    log = Written(site.parts.log_store, task_id)
    log.add(b"".join(b"x%05d\n" % n if n % 30_000 else b"Target %05d\n" % n for n in range(100_000)))
    log.end()
    site.move(task_id, State.COMPLETE)
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs?stream=stdout")
    eventually(lambda: "x99999" in text_of(browser), "the end")

    def is_marked(number: int) -> bool:
        return browser.execute_script(MARKED) == f"Target {number:05d}"

    box = browser.find_element("css selector", ".needle")
    box.send_keys("TARGET")
    for number in (90_000, 60_000, 30_000, 0, 90_000):
        browser.find_element("css selector", ".previous").click()
        eventually(partial(is_marked, number), f"the match {number}")
    for number in (0, 30_000):
        browser.find_element("css selector", ".next").click()
        eventually(partial(is_marked, number), f"the match {number}")
    box.clear()
    box.send_keys("nowhere\n")
    eventually(lambda: "not found" in browser.find_element("css selector", ".pane-status").text, "that there is none")


SEARCH_TWICE = """
const read = window.fetch, next = document.querySelector('.next');
let reads = 0;
window.fetch = async (...request) => {
  const number = reads += 1;
  if (number === 2) next.click(); // the first match has been found and is being loaded
  while (number === 3 && document.querySelector('.log mark') === null) await new Promise((done) => setTimeout(done, 20));
  return read(...request);
};
next.click();
"""


def test_a_search_goes_on_that_began_while_the_match_before_was_loaded(site, browser):
    task_id = running(site)
    log = Written(site.parts.log_store, task_id)
    log.add(b"".join(b"Target %05d\n" % n if n in (50_000, 90_000) else b"x%05d\n" % n for n in range(100_000)))
    log.end()
    site.move(task_id, State.COMPLETE)
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs?stream=stdout")
    browser.find_element("css selector", ".to-start").click()
    eventually(lambda: text_of(browser).startswith("x00000"), "the start")
    browser.find_element("css selector", ".needle").send_keys("target")
    browser.execute_script(SEARCH_TWICE)
    eventually(lambda: browser.execute_script(MARKED) == "Target 90000", "the second match")


HOSTILE = (
    b"<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\n"
    b"\x1b]8;;javascript:document.title='owned'\x1b\\a link\x1b]8;;\x1b\\\n"
    b"\x1b[38;2;1;2;3mtrue colour\x1b[0m \x1b[48;5;200mback\x1b[0m \x1b[999999999999999mno\x1b[;;;m\n"
    b"\xe2\x80\xaeoverride\xe2\x80\xac \x00\x07\x08\x7f \xff\xfe\x80 \x1b[2J\x1b[H \x1b\n"
    b"10%\r20%\r\n" + b"\x1b[" * 1000 + b"\x1b]" * 1000 + b"end of it\n"
)


def test_the_text_of_a_log_does_nothing(site, browser):
    task_id = running(site)
    log = Written(site.parts.log_store, task_id)
    log.add(HOSTILE + b"\x1b[31m.\x1b[32m.\n" * 30_000 + b"\n" * 100_000 + b"last\n")
    log.end()
    site.move(task_id, State.COMPLETE)
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs?stream=stdout")
    eventually(lambda: text_of(browser).endswith("last\n"), "the end")
    assert browser.execute_script("return document.querySelectorAll('.log *').length") < 30_000
    browser.find_element("css selector", ".to-start").click()
    eventually(lambda: "end of it" in text_of(browser), "the start")
    assert "owned" not in browser.title
    assert (
        browser.execute_script("return document.querySelectorAll('.log script, .log img, .log a, .log [style]').length")
        == 0
    )
    text = text_of(browser)
    assert "<script>" in text and "⟨U+202E⟩override" in text and "␀␇␈␡" in text and "10%\n20%\n" in text
    assert "\x1b" not in text and "javascript" not in text.split("a link")[0].split("\n")[-1]


def test_a_log_without_lines_and_one_of_odd_characters_are_read_piece_by_piece(site, browser):
    task_id = running(site)
    long = Written(site.parts.log_store, task_id)
    long.add("é".encode() * 1_500_000 + b"END")
    long.end()
    site.move(task_id, State.COMPLETE)
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs?stream=stdout")
    eventually(lambda: text_of(browser).endswith("éEND"), "the end")
    for _ in range(4):
        browser.execute_script("window.first = document.querySelector('.chunk')")
        eventually(lambda: browser.execute_script(SCROLL_UP), "an earlier piece")
    assert set(text_of(browser)) <= {"é", "E", "N", "D"}, "a character was cut"
    assert len(text_of(browser)) < MOST_TEXT


def test_without_a_log_store_the_tail_is_followed(make_site, browser):
    site = make_site()
    task_id = running(site)
    site.change(task_id, log=TaskLog((ExecutorLog(None, stdout="one\n"),)))
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs")
    assert "POIESIS_LOGS__URL" in browser.find_element("css selector", ".notice").text
    eventually(lambda: text_of(browser) == "one\n", "the tail")
    site.change(task_id, log=TaskLog((ExecutorLog(None, stdout="two\n"),)))
    eventually(lambda: text_of(browser) == "two\n", "the next tail")
    site.change(
        task_id, state=State.COMPLETE, stage=Stage.DONE, wake_at=None, log=TaskLog((ExecutorLog(0, stdout="three\n"),))
    )
    eventually(lambda: text_of(browser) == "three\n", "the last tail", 30)


def test_without_javascript_the_end_is_text_with_a_download(site, browser):
    task_id = running(site)
    log = Written(site.parts.log_store, task_id)
    log.add(b"x\n" * 100_000 + COLOURED)
    log.end()
    site.move(task_id, State.COMPLETE)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs")
    pane = browser.find_element("css selector", "[data-stream=stdout]")
    assert "ERROR cannot open" in pane.text and "Download" in pane.text
    assert not browser.find_element("css selector", ".pane-tools").is_displayed()


def test_logs_in_light_dark_and_narrow_without_a_finding(site, browser, show, assert_accessible, screenshot):
    task_id = completed(site)
    for executor in range(3):
        for attempt in (1, 2):
            out = Written(site.parts.log_store, task_id, "stdout", executor, attempt)
            out.add(
                b"".join(
                    b"[M::process] read %d sequences (10000%03d bp)...\n" % (66_000 + n, n % 1000)
                    for n in range(20_000)
                )
            )
            out.end()
            error = Written(site.parts.log_store, task_id, "stderr", executor, attempt)
            error.add(COLOURED * 12)
            error.end()
    browser.get(f"{site.url}/ui/tasks/{task_id}/logs")
    eventually(lambda: "ERROR" in text_of(browser, "stderr") and "86" in text_of(browser), "the end of both")
    for size in ("light", "dark", "narrow"):
        show(size)
        assert_accessible(browser)
        width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"the page is wider than the window ({size})"
    screenshot("logs")
