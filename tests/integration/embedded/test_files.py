"""Inputs and outputs of every kind, through the whole service."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.embedded.service import Service, logs_of, request, sh, system_log

ODD_PATHS = (
    "/in.txt",
    "/etc/x.conf",
    "/usr/share/poiesis/data.txt",
    "/tmp/in/side",
    "/with space/and  two",
    "/unicode/ünï/文件 💥",
    "/data/-rf",
    "/data/$(HOME)",
    "/data/quo'te\"s",
    "/data/.hidden",
    "/home/user/file",
    "/root/file",
    "/deep/" + "/".join("abcdefghij") + "/file",
)


def test_content_is_staged_at_unusual_paths_and_uploaded_from_there(service: Service, files: Path) -> None:
    names = [f"{i}-{path.rpartition('/')[2]}" for i, path in enumerate(ODD_PATHS)]
    task = service.run(
        {"image": "alpine", "command": ["cat", "--", *ODD_PATHS]},
        {"image": "alpine", "command": ["sh", "-c", 'for p; do echo "back $p" > "$p.out"; done', "sh", *ODD_PATHS]},
        inputs=[{"path": path, "content": f"{path}\n"} for path in ODD_PATHS],
        outputs=[
            {"path": f"{path}.out", "url": f"file://{files}/{quote(name)}"}
            for path, name in zip(ODD_PATHS, names, strict=True)
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert logs_of(task)[0]["stdout"] == "".join(f"{path}\n" for path in ODD_PATHS)
    assert {n: (files / n).read_text() for n in names} == {
        n: f"back {p}\n" for n, p in zip(names, ODD_PATHS, strict=True)
    }
    assert not Path("/in.txt").exists() and not Path("/etc/x.conf").exists()


def test_directories_are_staged_and_uploaded_completely(service: Service, files: Path) -> None:
    (files / "tree/a/b").mkdir(parents=True)
    (files / "tree/one").write_text("1")
    (files / "tree/a/b/two").write_text("2")
    task = service.run(
        sh("cp -r /in/. /out/; echo 3 > /out/a/three"),
        inputs=[{"path": "/in", "url": f"file://{files}/tree", "type": "DIRECTORY"}],
        outputs=[{"path": "/out", "url": f"file://{files}/copy", "type": "DIRECTORY"}],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    found = {str(p.relative_to(files / "copy")): p.read_text() for p in (files / "copy").rglob("*") if p.is_file()}
    assert found == {"one": "1", "a/b/two": "2", "a/three": "3\n"}
    assert {o["path"] for o in task["logs"][0]["outputs"]} == {"/out/one", "/out/a/b/two", "/out/a/three"}


def test_wildcards_are_matched_and_the_prefix_is_cut_off(service: Service, files: Path) -> None:
    task = service.run(
        sh("mkdir -p /work/s; for n in a.txt b.txt c.bin s/d.txt 'x{1}.out'; do echo $n > \"/work/$n\"; done"),
        volumes=["/work"],
        outputs=[
            {"path": "/work/*.txt", "path_prefix": "/work", "url": f"file://{files}/flat"},
            {"path": "/work/s/?.txt", "path_prefix": "/work", "url": f"file://{files}/deep"},
            {"path": "/work/x{1}.out", "url": f"file://{files}/literal"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    found = {str(p.relative_to(files)): p.read_text() for p in files.rglob("*") if p.is_file()}
    assert found == {
        "flat/a.txt": "a.txt\n",
        "flat/b.txt": "b.txt\n",
        "deep/s/d.txt": "s/d.txt\n",
        "literal": "x{1}.out\n",
    }


def test_a_missing_output_is_an_error_of_the_task(service: Service, files: Path) -> None:
    task = service.run(sh("true"), outputs=[{"path": "/data/out", "url": f"file://{files}/out"}])
    assert task["state"] == "SYSTEM_ERROR"
    assert "/data/out" in system_log(task) and logs_of(task)[0]["exit_code"] == 0
    assert list(files.iterdir()) == []


IN_IMAGE_DIRECTORIES = ("/home/u/result.txt", "/opt/a/r", "/mnt/r", "/root/r", "/var/lib/r", "/etc/r")


def test_an_unwritten_output_in_an_image_directory_is_missing(service: Service, files: Path) -> None:
    for number in range(len(IN_IMAGE_DIRECTORIES)):
        (files / str(number)).write_text("of an earlier task")
    task = service.run(
        sh("echo hello"),
        sh("cat " + " ".join(IN_IMAGE_DIRECTORIES)),
        outputs=[{"path": p, "url": f"file://{files}/{n}"} for n, p in enumerate(IN_IMAGE_DIRECTORIES)],
    )
    assert task["state"] == "SYSTEM_ERROR"
    assert task["logs"][0]["metadata"]["failure_reason"] == "OutputMissing"
    assert task["logs"][0]["outputs"] == []
    assert all(path in system_log(task) for path in IN_IMAGE_DIRECTORIES[:5])
    assert {p.name: p.read_text() for p in files.iterdir()} == {
        str(n): "of an earlier task" for n in range(len(IN_IMAGE_DIRECTORIES))
    }


@pytest.mark.parametrize("script", [": > /home/u/r", "true >> /home/u/r; touch /home/u/r", "cp /dev/null /home/u/r"])
def test_an_output_in_an_image_directory_may_be_written_empty(service: Service, files: Path, script: str) -> None:
    (files / "r").write_text("of an earlier task")
    task = service.run(sh(script), sh("true"), outputs=[{"path": "/home/u/r", "url": f"file://{files}/r"}])
    assert task["state"] == "COMPLETE", task["logs"]
    assert (files / "r").read_bytes() == b""


def test_unusable_entries_are_left_out_with_a_note(service: Service, files: Path) -> None:
    task = service.run(
        sh(
            "cd /work; echo 1 > a.txt; ln -s loop.txt loop.txt; ln -s /nothing dangling.txt; ln -s /etc/hosts out.txt; mkfifo p.txt"
        ),
        volumes=["/work"],
        outputs=[
            {"path": "/work/*.txt", "path_prefix": "/work", "url": f"file://{files}/matched"},
            {"path": "/work", "url": f"file://{files}/whole", "type": "DIRECTORY"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    found = {str(p.relative_to(files)): p.read_text() for p in files.rglob("*") if p.is_file()}
    assert found == {"matched/a.txt": "1\n", "whole/a.txt": "1\n"}
    assert all(f"not uploaded: /work/{n}.txt: " in system_log(task) for n in ("loop", "dangling", "out", "p"))


def test_escapes_in_output_paths_mean_the_plain_character(service: Service, files: Path) -> None:
    task = service.run(
        sh("mkdir '/w/s[1]' '/w/a b'; echo star > '/w/a*b'; echo one > '/w/s[1]/x'; echo blank > '/w/a b/y.txt'"),
        volumes=["/w"],
        outputs=[
            {"path": r"/w/a\*b", "url": f"file://{files}/star"},
            {"path": r"/w/s\[1\]/*", "path_prefix": r"/w/s\[1\]", "url": f"file://{files}/prefix"},
            {"path": r"/w/a\ b/*.txt", "path_prefix": "/w", "url": f"file://{files}/pattern"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    found = {str(p.relative_to(files)): p.read_text() for p in files.rglob("*") if p.is_file()}
    assert found == {"star": "star\n", "prefix/x": "one\n", "pattern/a b/y.txt": "blank\n"}


def test_a_declared_directory_output_exists_before_the_first_command(service: Service, files: Path) -> None:
    task = service.run(
        sh("echo 1 > /out/d/file; echo 2 > /out/matched/x.txt"),
        outputs=[
            {"path": "/out/d", "url": f"file://{files}/d", "type": "DIRECTORY"},
            {"path": "/out/matched/*.txt", "path_prefix": "/out", "url": f"file://{files}/m"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert {str(p.relative_to(files)) for p in files.rglob("*") if p.is_file()} == {"d/file", "m/matched/x.txt"}


def test_unusable_entries_of_a_directory_input_are_left_out_with_a_note(service: Service, files: Path) -> None:
    (files / "in").mkdir()
    (files / "in/x").write_text("x")
    (files / "in/dangling").symlink_to("nothing")
    (files / "in/outside").symlink_to("/etc/hostname")
    os.mkfifo(files / "in/fifo")
    task = service.run(
        sh("ls /data /one"),
        inputs=[
            {"path": "/data", "url": f"file://{files}/in", "type": "DIRECTORY"},
            {"path": "/one", "url": f"file://{files}/in/x", "type": "DIRECTORY"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert logs_of(task)[0]["stdout"].split() == ["/data:", "x", "/one:", "x"]
    assert all(f"/data/{n}: not staged" in system_log(task) for n in ("dangling", "outside", "fifo"))


def test_a_missing_output_may_be_optional(service: Service, files: Path) -> None:
    task = service.run(
        sh("echo x > /data/there"),
        outputs=[{"path": f"/data/{n}", "url": f"file://{files}/{n}"} for n in ("there", "missing")],
        resources={"backend_parameters": {"optional_outputs": "true"}},
    )
    assert task["state"] == "COMPLETE" and "/data/missing" in system_log(task)
    assert [o["path"] for o in task["logs"][0]["outputs"]] == ["/data/there"]
    assert [p.name for p in files.iterdir()] == ["there"]


def test_outputs_are_uploaded_after_an_executor_error(service: Service, files: Path) -> None:
    task = service.run(
        sh("echo partial > /data/out; exit 3", stderr="/data/err"),
        outputs=[{"path": f"/data/{n}", "url": f"file://{files}/{n}"} for n in ("out", "err", "missing")],
    )
    assert task["state"] == "EXECUTOR_ERROR"
    assert (files / "out").read_text() == "partial\n" and (files / "err").read_text() == ""
    assert sorted(o["path"] for o in task["logs"][0]["outputs"]) == ["/data/err", "/data/out"]


def test_an_input_that_is_missing_is_an_error_of_the_task(service: Service, files: Path) -> None:
    task = service.run(sh("echo ran"), inputs=[{"path": "/in", "url": f"file://{files}/nothing"}])
    assert task["state"] == "SYSTEM_ERROR" and logs_of(task) == []
    assert "nothing" in system_log(task)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "file://{files}/../../../../etc/passwd", "file://{root}", "/etc/passwd"]
)
def test_files_outside_the_allowed_directories_are_refused(service: Service, files: Path, url: str) -> None:
    url = url.format(files=files, root=service.directory)
    before = service.count()
    answer = request(
        "POST", f"{service.api}/tasks", {"executors": [sh("true")], "inputs": [{"path": "/in", "url": url}]}
    )
    assert answer.status == 400 and answer.document["problems"][0]["path"] == "$.inputs[0].url"
    assert service.count() == before


def test_links_do_not_lead_out_of_the_allowed_directories(service: Service, files: Path) -> None:
    (files / "link").symlink_to("/etc/passwd")
    (files / "out").symlink_to("/tmp")
    task = service.run(sh("cat /in"), inputs=[{"path": "/in", "url": f"file://{files}/link"}])
    assert task["state"] == "SYSTEM_ERROR" and logs_of(task) == []
    task = service.run(
        sh("echo x > /data/o; ln -s /etc/passwd /data/link"),
        outputs=[
            {"path": "/data/o", "url": f"file://{files}/out/poiesis-leak"},
            {"path": "/data/link", "url": f"file://{files}/leak"},
        ],
    )
    assert task["state"] == "SYSTEM_ERROR"
    assert not Path("/tmp/poiesis-leak").exists()
    assert not (files / "leak").exists() or "root:" not in (files / "leak").read_text()


def test_commands_see_neither_the_service_nor_the_files_of_others(service: Service, files: Path) -> None:
    (files / "secret").write_text("secret")
    script = (
        "ls {0} 2>/dev/null; cat {1}/secret 2>/dev/null; ls -A {2} 2>/dev/null; touch /usr/x /etc/x 2>/dev/null; true"
    )
    task = service.run(sh(script.format(service.directory, files, service.directory / "tasks")))
    assert task["state"] == "COMPLETE" and logs_of(task)[0]["stdout"] == ""
    assert not Path("/usr/x").exists() and not Path("/etc/x").exists()


def test_large_content_and_many_inputs_arrive(service: Service) -> None:
    large = "".join(f"{i:07}\n" for i in range(131072))  # 1 MiB, the largest that is accepted
    task = service.run(
        sh("sha256sum < /data/large; ls /many | wc -l; cat /many/* | sha256sum"),
        inputs=[
            {"path": "/data/large", "content": large},
            *({"path": f"/many/{i:04}", "content": f"{i}"} for i in range(600)),
        ],
    )
    sums = [hashlib.sha256(text.encode()).hexdigest() for text in (large, "".join(str(i) for i in range(600)))]
    assert logs_of(task)[0]["stdout"].split() == [sums[0], "-", "600", sums[1], "-"]


def test_an_empty_file_is_a_file(service: Service, files: Path) -> None:
    task = service.run(
        sh("cp /data/in /data/out"),
        inputs=[{"path": "/data/in", "content": ""}],
        outputs=[{"path": "/data/out", "url": f"file://{files}/out"}],
    )
    assert task["state"] == "COMPLETE" and (files / "out").read_bytes() == b""
    assert task["logs"][0]["outputs"][0]["size_bytes"] == "0"


@pytest.fixture
def web(files: Path) -> Iterator[str]:
    """URL of an HTTP server that serves `files`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SilentHandler, directory=str(files)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_addresses_of_this_machine_are_not_fetched_for_users(service: Service, files: Path, web: str) -> None:
    """A task's URL could reach services on loopback; the operator allows single addresses."""
    (files / "page").write_text("inner")
    answer = request(
        "POST",
        f"{service.api}/tasks",
        {"executors": [sh("cat /in")], "inputs": [{"path": "/in", "url": f"{web}/page"}]},
    )
    if answer.status == 200:
        task = service.wait(answer.document["id"])
        assert task["state"] == "SYSTEM_ERROR" and logs_of(task) == []
    else:
        assert answer.status == 400
