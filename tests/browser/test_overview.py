"""The overview in a browser."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from poiesis.domain.naming import new_task_id
from poiesis.domain.quotas import AdmissionRules, Quota
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, Outcome, Resources, Task, TaskLog
from poiesis.services.admission import Admitter
from tests.browser.site import HELLO, Site
from tests.browser.waiting import eventually, to_next_page

QUOTAS = AdmissionRules(
    site=Quota(max_tasks=40, max_cpu_cores=160, max_ram_gb=640, max_gpus=8),
    user=Quota(max_tasks=20),
    users={"grace": Quota(weight=2)},
)
NAMES = ("ada", "grace", "linus", "margaret")
FAILURES = ("OutOfMemory", "ExecutorFailed", "ExecutorFailed", "TimeLimit", "InputFailed")


def add(site: Site, at: datetime, **changes: Any) -> Task:
    task = Task(new_task_id(at), HELLO, at, **changes)
    task = task.recorded(changes["log"].end_time if "log" in changes else at)
    site.parts.repository.add(task)
    return task


def a_day(site: Site, dice: random.Random) -> None:
    """Tasks that ended in the last 24 hours, and some that run and wait."""
    now = site.parts.clock.now()
    for hour in reversed(range(24)):
        count = dice.randrange(2, 14)
        for minutes in sorted((dice.uniform(0, 50) for _ in range(count)), reverse=True):
            end = now - timedelta(hours=hour, minutes=minutes)
            begin = end - timedelta(seconds=dice.uniform(30, 900))
            created = begin - timedelta(seconds=dice.lognormvariate(3, 1.4))
            cores, used = dice.choice((1, 2, 4)), dice.uniform(0.1, 0.95)
            spec = replace(HELLO, resources=Resources(cpu_cores=cores, ram_gb=4 * cores))
            seconds = (end - begin).total_seconds()
            metadata = {
                "executor_0_cpu_seconds": str(used * cores * seconds),
                "executor_0_peak_memory_bytes": str(int(dice.uniform(0.1, 0.9) * 4e9 * cores)),
            }
            log = TaskLog((ExecutorLog(0, begin, end),), metadata=metadata, start_time=begin, end_time=end)
            state = dice.choices((State.COMPLETE, State.EXECUTOR_ERROR, State.CANCELED), (88, 9, 3))[0]
            outcome = Outcome(state, dice.choice(FAILURES), "x") if state is State.EXECUTOR_ERROR else None
            task = Task(
                new_task_id(created),
                spec,
                created,
                state,
                Stage.DONE,
                owner=dice.choice(NAMES),
                log=log,
                outcome=outcome,
            )
            site.parts.repository.add(task.recorded(end))
    while site.parts.usage.roll_up():
        pass
    for i in range(46):
        owner, reason = NAMES[i % 3], "NodesBusy: 0/3 nodes are available"
        site.parts.tasks.create(replace(HELLO, resources=Resources(cpu_cores=4, ram_gb=16)), owner=owner)
        if i < 12:
            waiting = reason if i < 9 else "ImagePullBackOff: no such image"
            add(site, now, owner=owner, state=State.INITIALIZING, waiting=waiting)
    for _ in range(31):
        add(site, now, owner="ada", state=State.RUNNING, stage=Stage.RUN)


def admit(site: Site) -> None:
    parts = site.parts
    admitter = Admitter(parts.repository, parts.stores.admission, parts.queue, parts.clock, parts.policy)
    admitter.run_once()


def text(browser, name: str) -> str:
    return str(browser.find_element("css selector", f"#tile-{name} strong").text)


def test_the_overview_in_light_dark_and_narrow_without_a_finding(
    make_site, browser, show, screenshot, assert_accessible
):
    site = make_site(admission=QUOTAS)
    a_day(site, random.Random(3))
    admit(site)
    browser.get(f"{site.url}/ui")
    eventually(lambda: text(browser, "running") == "31", "the figures")
    assert browser.current_url == f"{site.url}/ui/overview"
    for kind in ("light", "dark", "narrow"):
        show(kind)
        assert_accessible(browser)
        width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, f"the page is wider than the window ({kind})"
    screenshot("overview")


def test_figures_change_while_the_page_is_open_and_what_is_open_stays_open(site, browser):
    site.create()
    browser.get(f"{site.url}/ui/overview")
    eventually(lambda: text(browser, "waiting") == "1", "the first figures")
    is_open = "return document.getElementById('figures').open && document.activeElement.id === 'figures-summary'"

    def opened() -> bool:
        if not browser.execute_script(is_open):
            browser.find_element("id", "figures-summary").send_keys(" ")
        return bool(browser.execute_script(is_open))

    eventually(opened, "the open figures")
    site.move(site.create(), State.INITIALIZING, State.RUNNING)
    eventually(lambda: text(browser, "running") == "1", "the next figures")
    assert browser.execute_script(is_open)


def test_the_overview_without_javascript(site, browser):
    site.create()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{site.url}/ui/overview")
    while not browser.find_elements("id", "tile-waiting"):  # they have not been read yet
        browser.refresh()
    assert text(browser, "waiting") == "1"
    to_next_page(browser, browser.find_element("id", "tile-waiting").click)
    assert "state=QUEUED" in browser.current_url and "hello" in browser.find_element("id", "tasks").text
