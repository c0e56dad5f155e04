"""Running checks: deadlines, order, failures; and what is shown of them."""

from __future__ import annotations

import json
import threading
import time

from poiesis.doctor.clock import date_skew_s, skew_s
from poiesis.doctor.report import as_json, as_text, exit_code, worst
from poiesis.doctor.result import Check, Finding, Findings, Result, Status, error, ok, skipped, warning
from poiesis.doctor.run import run_checks
from poiesis.domain.errors import ConfigurationError


def check(*findings: Finding, name: str = "one", after: str | None = None) -> Check:
    return Check(name, "Group", lambda: iter(findings), after)


def test_results_have_the_order_of_the_checks_and_all_their_findings() -> None:
    results = run_checks([check(ok("a"), warning("b", "f", "r")), check(ok("c"), name="two")])
    assert [(r.name, r.finding.what) for r in results] == [("one", "a"), ("one", "b"), ("two", "c")]


def test_a_check_that_hangs_is_an_error_after_its_deadline_and_delays_no_other() -> None:
    forever = threading.Event()

    def hang() -> Findings:
        yield ok("first")
        forever.wait(30)

    began = time.monotonic()
    results = run_checks([Check("slow", "G", hang, deadline_s=0.2), check(ok("quick"), name="quick")])
    forever.set()
    assert time.monotonic() - began < 10
    assert [(r.name, r.status) for r in results] == [("slow", Status.OK), ("slow", Status.ERROR), ("quick", Status.OK)]
    assert results[1].finding.what == "no answer within 0.2 s"


def test_checks_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet() -> Findings:
        both.wait()
        yield ok("met")

    assert {r.status for r in run_checks([Check("a", "G", meet), Check("b", "G", meet)])} == {Status.OK}


def test_what_depends_on_a_check_with_an_error_is_skipped_also_in_turn() -> None:
    results = run_checks(
        [
            check(error("down", "", "")),
            check(ok("x"), name="two", after="one"),
            check(ok("x"), name="three", after="two"),
        ]
    )
    assert [r.status for r in results] == [Status.ERROR, Status.SKIPPED, Status.OK]
    assert results[1].finding.what == "not checked: depends on one"


def test_exceptions_are_findings_and_secrets_are_removed_from_them() -> None:
    def fail() -> Findings:
        yield from ()
        raise ConfigurationError("cannot use hunter22")

    def bug() -> Findings:
        yield from ()
        raise KeyError("hunter22")

    results = run_checks([Check("a", "G", fail), Check("b", "G", bug)], lambda t: t.replace("hunter22", "***"))
    assert [r.finding.what for r in results] == ["cannot use ***", "the check failed: KeyError: '***'"]
    assert {r.status for r in results} == {Status.ERROR}


def results_of(*findings: Finding) -> list[Result]:
    return [Result("name", "Group", f) for f in findings]


def test_exit_codes() -> None:
    fine, warned = results_of(ok("a"), skipped("b")), results_of(ok("a"), warning("b", "", ""))
    failed = results_of(error("a", "", ""), warning("b", "", ""))
    assert [exit_code(r, strict=False) for r in (fine, warned, failed, [])] == [0, 0, 1, 0]
    assert [exit_code(r, strict=True) for r in (fine, warned, failed, [])] == [0, 3, 1, 0]
    assert worst(fine) is Status.SKIPPED


def test_the_text_is_grouped_and_plain_without_colours() -> None:
    text = list(as_text(results_of(ok("a"), error("broken " * 30, "f", "kubectl get x")), width=80, colours=False))
    assert text[0] == "Group" and text[1] == "  ok       name             a"
    assert text[2].startswith("  error    name             broken")
    assert text[-1] == "1 error, 1 ok"
    assert any(line.strip() == "repair: kubectl get x" for line in text)
    assert max(map(len, text)) <= 80 and "\x1b" not in "\n".join(text)
    assert "\x1b[1;31merror" in "\n".join(as_text(results_of(error("a", "", "")), width=80, colours=True))


def test_the_json_has_every_field() -> None:
    found = json.loads(json.dumps(as_json(results_of(warning("w", "f", "r")), "machine", None)))
    assert found["status"] == "warning" and found["mode"] == "machine" and found["role"] is None
    assert found["results"] == [
        {"name": "name", "group": "Group", "status": "warning", "what": "w", "follows": "f", "repair": "r"}
    ]


def test_a_clock_is_only_called_wrong_beyond_the_round_trip() -> None:
    before = time.time() - 3
    assert skew_s(before + 1, before) == 0
    assert round(skew_s(before - 10, before)) == -10
    assert round(skew_s(time.time() + 20, before)) == 20
    assert date_skew_s("Thu, 01 Jan 1970 00:01:00 GMT", 160.0) == -100
    assert date_skew_s(None, before) is None and date_skew_s("yesterday", before) is None
