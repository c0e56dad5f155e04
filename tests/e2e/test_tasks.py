"""Typical tasks through the API on a real cluster: inputs, execution, outputs, and clean-up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Json
from tests.e2e.site import BUSYBOX, NOSHELL, Site, codes, content, one_log, posted, shell

ODD = "tab\tquote\"'`back\\slash $HOME ${HOME} $(PATH) $$(PATH) %s *?[a-z] ünï \u2028 \U0001f9ec"
LINES = "first\nsecond $(X)\n\n  last, without an end"


def _files_of_every_kind(site: Site) -> Json:
    site.put("kinds/one.txt", b"by s3\n")
    site.put("kinds/dir/a.txt", b"a")
    site.put("kinds/dir/deep/b.bin", bytes(range(256)))
    return {
        "name": "every kind of input",
        "inputs": [
            content("/data/in/inline.txt", "by content\n"),
            {"url": f"{site.web}/text/by-http", "path": "/data/in/http.txt", "type": "FILE"},
            {"url": site.url("kinds/one.txt"), "path": "/data/in/s3.txt"},
            {"url": site.url("kinds/dir/"), "path": "/data/tree", "type": "DIRECTORY"},
        ],
        "outputs": [
            {"path": "/data/out/all.txt", "url": site.url("kinds/out/all.txt"), "type": "FILE"},
            {"path": "/data/tree", "url": site.url("kinds/out/tree"), "type": "DIRECTORY"},
        ],
        "executors": [
            shell("mkdir -p /data/out; cat /data/in/inline.txt /data/in/s3.txt /data/in/http.txt > /data/out/all.txt")
        ],
    }


@posted(_files_of_every_kind)
def test_inputs_by_content_http_and_s3_and_outputs_are_transferred_byte_for_byte(site: Site, task: str):
    log = one_log(site.complete(task))
    everything = b"by content\nby s3\nby-http"
    assert site.got("kinds/out/all.txt") == everything
    assert site.got("kinds/out/tree/deep/b.bin") == bytes(range(256))
    assert site.got("kinds/out/tree/a.txt") == b"a"
    assert {(o["url"], o["path"]): o["size_bytes"] for o in log["outputs"]} == {
        (site.url("kinds/out/all.txt"), "/data/out/all.txt"): str(len(everything)),
        (site.url("kinds/out/tree/a.txt"), "/data/tree/a.txt"): "1",
        (site.url("kinds/out/tree/deep/b.bin"), "/data/tree/deep/b.bin"): "256",
    }
    metadata = log["metadata"]
    assert (metadata["inputs_files"], metadata["outputs_files"]) == ("5", "3")
    assert (metadata["inputs_bytes"], metadata["outputs_bytes"]) == (
        str(11 + 6 + 7 + 1 + 256),
        str(len(everything) + 257),
    )


@pytest.mark.parametrize("inputs", [[], [content("/in/x", "x")]], ids=["launcher", "tif"])
@posted(
    lambda site, inputs: {
        "inputs": inputs,
        "executors": [shell("echo 1 > /out/d/file && echo 2 > /found/deep/a.txt")],
        "outputs": [
            {"path": "/out/d", "url": site.url(f"made/{len(inputs)}/d"), "type": "DIRECTORY"},
            {"path": "/found/deep/*.txt", "path_prefix": "/found/", "url": site.url(f"made/{len(inputs)}/found/")},
        ],
    }
)
def test_the_directories_of_outputs_exist_before_the_first_command(site: Site, task: str, inputs: list[Json]):
    site.complete(task)
    assert site.got(f"made/{len(inputs)}/d/file") == b"1\n"
    assert list(site.keys(f"made/{len(inputs)}/found/").values()) == [2]


@posted(
    lambda site: {
        "volumes": ["/shared"],
        "executors": [
            shell(
                "echo from the first > /shared/note; echo out; echo err >&2", stdout="/logs/1.out", stderr="/logs/1.err"
            ),
            shell("cat; cat /shared/note", stdin="/logs/1.out", stdout="/logs/2.out", workdir="/shared"),
            shell('test "$(pwd)" = /shared && tr a-z A-Z < note > /logs/3.out', workdir="/shared"),
        ],
        "outputs": [
            {"path": f"/logs/{name}", "url": site.url(f"streams/{name}")}
            for name in ("1.out", "1.err", "2.out", "3.out")
        ],
    }
)
def test_executors_share_volumes_and_streams(site: Site, task: str):
    log = one_log(site.complete(task))
    found = {name: site.got(f"streams/{name}") for name in ("1.out", "1.err", "2.out", "3.out")}
    assert found == {
        "1.out": b"out\n",
        "1.err": b"err\n",
        "2.out": b"out\nfrom the first\n",
        "3.out": b"FROM THE FIRST\n",
    }
    assert [e["exit_code"] for e in log["logs"]] == [0, 0, 0]
    assert [(e["stdout"], e["stderr"]) for e in log["logs"][:2]] == [("out\n", "err\n"), ("out\nfrom the first\n", "")]
    times = [t for e in log["logs"] for t in (e["start_time"], e["end_time"])]
    assert times == sorted(times), "executors run one after the other"
    assert log["start_time"] <= times[0]
    assert times[-1] <= log["end_time"]


@posted(
    lambda site: {
        "executors": [
            shell("cd /work; mkdir -p sub; echo 1 > a.bam; echo 22 > b.bam; echo x > c.txt; echo 333 > sub/d.bam")
        ],
        "outputs": [
            {"path": "/work/*.bam", "path_prefix": "/work", "url": site.url("glob/flat")},
            {"path": "/work/*/*.bam", "path_prefix": "/work", "url": site.url("glob/deep")},
            {"path": "/work/[ab].bam", "path_prefix": "/work/", "url": site.url("glob/class/")},
        ],
    }
)
def test_wildcards_keep_what_follows_the_prefix(site: Site, task: str):
    site.complete(task)
    assert site.keys("glob/") == {
        "flat/a.bam": 2,
        "flat/b.bam": 3,
        "deep/sub/d.bam": 4,
        "class/a.bam": 2,
        "class/b.bam": 3,
    }


@posted(
    lambda site: {
        "inputs": [content("/data/in.txt", "no shell is needed\n")],
        "executors": [
            {"image": NOSHELL, "command": ["cat", "/data/in.txt"], "stdout": "/data/out.txt"},
            {"image": NOSHELL, "command": ["cat"], "stdin": "/data/out.txt"},
        ],
        "outputs": [{"path": "/data/out.txt", "url": site.url("noshell.txt")}],
    }
)
def test_an_image_without_a_shell_has_streams_files_and_logs(site: Site, task: str):
    log = one_log(site.complete(task))
    assert site.got("noshell.txt") == b"no shell is needed\n"
    assert log["logs"][1]["stdout"] == "no shell is needed\n"


@posted(
    lambda site: {
        "executors": [
            {
                "image": BUSYBOX,
                "command": [
                    "sh",
                    "-c",
                    r'printf "%s\0" "$@" "$ODD" "$LINES" "$EMPTY" > /out/args',
                    "sh",
                    ODD,
                    "$(ODD)",
                    "",
                    LINES,
                ],
                "env": {"ODD": ODD, "LINES": LINES, "EMPTY": "", "PLAIN": "$(ODD)"},
            }
        ],
        "volumes": ["/out"],
        "outputs": [{"path": "/out/args", "url": site.url("args")}],
    }
)
def test_arguments_and_variables_arrive_byte_for_byte(site: Site, task: str):
    site.complete(task)
    found = site.got("args")
    assert found is not None
    assert found.decode().split("\0") == [ODD, "$(ODD)", "", LINES, ODD, LINES, "", ""]


@posted(
    lambda site: {
        "inputs": [content("/in.txt", "at the top\n"), content("/etc/x.conf", "among the image's\n")],
        "executors": [
            shell("cat /in.txt /etc/x.conf > /out.txt; grep -c . /etc/passwd; test -x /bin/sh", stdout="/usr/count")
        ],
        "outputs": [
            {"path": "/out.txt", "url": site.url("mounts/out.txt")},
            {"path": "/usr/count", "url": site.url("mounts/count")},
        ],
    }
)
def test_single_files_do_not_hide_those_of_the_image(site: Site, task: str):
    site.complete(task)
    assert site.got("mounts/out.txt") == b"at the top\namong the image's\n"
    assert (site.got("mounts/count") or b"").strip().isdigit()


@posted(
    lambda site: {
        "executors": [
            shell("exit 3", ignore_error=True),
            shell("echo went on"),
        ]
    }
)
def test_an_ignored_error_does_not_stop_the_task(site: Site, task: str):
    found = site.complete(task)
    assert codes(found) == [3, 0]
    assert one_log(found)["logs"][1]["stdout"] == "went on\n"


@posted(
    lambda site: {
        "resources": {"cpu_cores": 0.05, "ram_gb": 0.25, "disk_gb": 0.1},
        "executors": [
            shell("dd if=/dev/zero of=/dev/null bs=1M count=2000; head -c 50000000 /dev/zero | tail | wc -c")
        ],
    }
)
def test_usage_of_each_executor_is_reported(site: Site, task: str):
    metadata = one_log(site.complete(task))["metadata"]
    assert 1_000_000 < int(metadata["executor_0_peak_memory_bytes"]) <= 250_000_000
    assert 0 < float(metadata["executor_0_cpu_seconds"]) < 60
    assert metadata["node"]
    (pod,) = site.pods.of(task).values()
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "50m", "memory": "250M"}
    assert container["resources"]["limits"] == {"memory": "250M"}


@posted(
    lambda site: {
        "inputs": [content(f"/data/{i}.txt", chr(ord("a") + i) * 700_000) for i in range(3)],
        "executors": [shell("cat /data/?.txt | md5sum; cat /data/?.txt | wc -c")],
    }
)
def test_content_larger_than_one_secret_arrives_completely(site: Site, task: str):
    from hashlib import md5

    whole = b"a" * 700_000 + b"b" * 700_000 + b"c" * 700_000
    output = one_log(site.complete(task))["logs"][0]["stdout"]
    assert output.split() == [md5(whole).hexdigest(), "-", "2100000"]


@posted(lambda site: {"executors": [shell("echo made > here; pwd; cat here", workdir="/made/for/me")]})
def test_a_workdir_missing_in_the_image_is_created(site: Site, task: str):
    assert one_log(site.complete(task))["logs"][0]["stdout"] == "/made/for/me\nmade\n"


@posted(
    lambda site: {
        "resources": {"backend_parameters": {"optional_outputs": "true"}},
        "executors": [shell("echo there > /data/there")],
        "outputs": [
            {"path": "/data/there", "url": site.url("optional/there")},
            {"path": "/data/missing", "url": site.url("optional/missing")},
        ],
    }
)
def test_outputs_that_are_optional_may_be_missing(site: Site, task: str):
    site.complete(task)
    assert site.keys("optional/") == {"there": 6}


@posted(lambda site: {"executors": [shell("i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done")]})
def test_the_tail_of_much_output_is_kept(site: Site, task: str):
    output = one_log(site.complete(task))["logs"][0]["stdout"]
    assert output.endswith("line 39998\nline 39999\n")
    assert 8_000 < len(output) < 40_000


@posted(
    lambda site: {
        "executors": [shell("touch /data/empty; mkdir -p /data/tree/hollow; touch /data/tree/also")],
        "volumes": ["/data"],
        "outputs": [
            {"path": "/data/empty", "url": site.url("empty/file")},
            {"path": "/data/tree/", "url": site.url("empty/tree/"), "type": "DIRECTORY"},
        ],
    }
)
def test_empty_files_are_files(site: Site, task: str):
    log = one_log(site.complete(task))
    assert site.keys("empty/") == {"file": 0, "tree/also": 0}
    assert {o["size_bytes"] for o in log["outputs"]} == {"0"}


@posted(
    lambda site: {"executors": [shell("echo first; echo second >&2; trap 'exit 0' TERM; while :; do sleep 0.2; done")]}
)
def test_output_of_a_running_command_can_be_read(site: Site, task: str):
    site.wait(task, ("RUNNING",))

    def look() -> Any:
        metadata = one_log(site.service.task(task))["metadata"]
        return metadata if "second" in metadata.get("live_stdout", "") + metadata.get("live_stderr", "") else None

    metadata = site.until(look, 60, "there was no live output")
    assert metadata["live_executor"] == "0"
    assert sorted(metadata["live_stdout"].splitlines()) == ["first", "second"], "one log for both streams"
    assert metadata["live_stderr"] == ""
    assert one_log(site.service.task(task))["logs"] == [], "no entry before its executor has ended"
    site.cancel(task)
    site.wait(task, ("CANCELED",))


SMALL = {"executors": [{"image": BUSYBOX, "command": ["true"]}]}


@posted(lambda site: {**SMALL, "name": "nothing at all", "tags": {"run": site.run}})
def test_a_task_without_files_has_neither_volume_nor_filer(site: Site, task: str):
    site.complete(task)
    (pod,) = site.pods.of(task).values()
    assert [c["name"] for c in pod["spec"]["containers"]] == ["executor-0"]
    assert "initContainers" not in pod["spec"]
    assert not [v for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    status, page = site.service.call("GET", f"/tasks?tag_key=run&tag_value={site.run}")
    assert (status, [t["id"] for t in page["tasks"]]) == (200, [task])


@posted(
    lambda site: {
        "inputs": [{"url": site.put("one-pod", b"x"), "path": "/data/in"}],
        "executors": [shell("cp /data/in /data/mid"), shell("cp /data/mid /data/out")],
        "outputs": [{"path": "/data/out", "url": site.url("one-pod.out")}],
    }
)
def test_a_task_with_files_and_two_executors_is_one_pod_and_leaves_nothing(site: Site, task: str):
    site.complete(task)
    site.assert_gone(task)
    (pod,) = site.pods.of(task).values()
    assert sorted(c["name"] for c in pod["spec"]["containers"]) == ["executor-0", "executor-1", "tif", "tof"]
    volumes = json.loads(site.service.cluster.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    claims = [(v["spec"].get("claimRef") or {}).get("name", "") for v in volumes]
    assert not [c for c in claims if task in c]
