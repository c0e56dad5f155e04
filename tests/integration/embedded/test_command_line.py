"""`poiesis task …` and `poiesis info` as a user types them: against the service. (Invalid command lines: unit/cli.)"""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poiesis.api.credentials import hash_secret
from tests.integration.embedded.service import Service, command, environment, request, run_poiesis, sh


def write(directory: Path, *executors: Any, **more: Any) -> str:
    path = directory / "task.json"
    path.write_text(json.dumps({"executors": list(executors), **more}))
    return str(path)


def task(service: Service, *arguments: str, **options: Any) -> Any:
    return run_poiesis("task", *arguments, POIESIS_URL=service.url, **options)


def test_a_task_is_created_followed_and_shown(service: Service, tmp_path: Path) -> None:
    done = task(service, "create", write(tmp_path, sh("echo words; echo loud >&2"), name="cli", tags={"a": "b"}))
    assert done.returncode == 0 and done.stderr == ""
    task_id = done.stdout.strip()
    waited = task(service, "wait", task_id, "--timeout", "60")
    assert waited.returncode == 0 and waited.stdout.splitlines()[-1].split()[-2:] == [task_id, "COMPLETE"]
    shown = task(service, "get", task_id)
    assert json.loads(shown.stdout)["state"] == "COMPLETE"
    assert json.loads(task(service, "get", task_id, "--view", "MINIMAL").stdout) == {"id": task_id, "state": "COMPLETE"}
    logs = task(service, "logs", task_id).stdout
    assert "stdout: words" in logs and "stderr: loud" in logs and "exit code 0" in logs
    assert json.loads(task(service, "logs", task_id, "--json").stdout)[0]["logs"][0]["stdout"] == "words\n"
    for query in (["--tag", "a=b"], ["--tag", "a"], ["--name-prefix", "cli"], ["--state", "COMPLETE", "--limit", "1"]):
        listed = task(service, "list", *query)
        assert task_id in listed.stdout and "COMPLETE" in listed.stdout, query
    assert json.loads(task(service, "list", "--tag", "a=c", "--json").stdout) == {"tasks": []}


def test_a_failed_task_is_reported_by_exit_code_and_logs(service: Service, tmp_path: Path) -> None:
    done = task(service, "create", write(tmp_path, sh("echo why >&2; exit 3")), "--wait", "--timeout", "60")
    assert done.returncode == 100
    assert "EXECUTOR_ERROR" in done.stdout and "exit code 3" in done.stdout and "stderr: why" in done.stdout
    done = task(service, "create", "-", "--wait", "--json", stdin=json.dumps({"executors": [sh("true")]}))
    assert done.returncode == 0 and json.loads(done.stdout)["tasks"][0]["state"] == "COMPLETE"


def test_waiting_can_time_out_and_tasks_be_canceled(service: Service, tmp_path: Path) -> None:
    made = task(service, "create", write(tmp_path, sh("while :; do sleep 0.1; done")), "--json")
    task_id = json.loads(made.stdout)["id"]
    waited = task(service, "wait", task_id, "--timeout", "0.3")
    assert waited.returncode == 124 and "0.3 s" in waited.stderr
    canceled = task(service, "cancel", task_id, task_id)
    assert canceled.returncode == 0 and canceled.stdout.count(task_id) == 1
    ended = task(service, "wait", task_id, "--timeout", "60", "--json")
    assert ended.returncode == 102 and json.loads(ended.stdout)["tasks"] == [{"id": task_id, "state": "CANCELED"}]


def test_problems_of_a_task_are_reported_line_by_line(service: Service, tmp_path: Path) -> None:
    before = service.count()
    done = task(service, "create", write(tmp_path, {"image": "a", "command": []}, volumes=["v"]))
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "$.executors[0].command" in done.stderr and "$.volumes[0]" in done.stderr
    assert service.count() == before


def test_info_shows_service_and_settings(service: Service) -> None:
    done = run_poiesis(
        "info", POIESIS_URL=service.url, POIESIS_POLICY__MAX_ATTEMPTS="5", POIESIS_MONGO_URI="mongodb://u:secret@h"
    )
    assert done.returncode == 0, done.stderr
    assert "org.ga4gh:tes:1.1.0" in done.stdout and "POIESIS_POLICY__MAX_ATTEMPTS=5" in done.stdout
    assert "secret" not in done.stdout + done.stderr and "time_limit" in done.stdout
    info = json.loads(
        run_poiesis("info", "--json", POIESIS_URL=service.url, POIESIS_MONGO_URI="mongodb://u:secret@h").stdout
    )
    assert info["service"]["type"]["artifact"] == "tes" and "secret" not in json.dumps(info)


def test_a_log_is_followed_until_its_executor_ends(make_service: Callable[..., Service], tmp_path: Path) -> None:
    service = make_service(POIESIS_LOGS__URL=(tmp_path / "logs").as_uri()).start()
    task_id = service.post(
        {"executors": [sh("printf 10%%; printf '\\r100%%\\n'; printf 'é\\033[1m\\n'; sleep 1; echo end")]}
    )
    service.wait(task_id, "RUNNING", "COMPLETE")
    done = run_poiesis("task", "logs", "-f", task_id, "--url", service.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\r", "\n") == "10%\n100%\né\\u001b[1m\nend\n"
    unknown = task(service, "logs", "-f", "0pgmi0000000000000000000000")
    assert (unknown.returncode, unknown.stderr.startswith("poiesis: no such task")) == (66, True)


def test_a_task_is_explained_and_repeated_with_changes(service: Service, tmp_path: Path) -> None:
    task_id = service.post({"name": "one", "executors": [sh("exit 3")]})
    service.wait(task_id, "EXECUTOR_ERROR")
    why = task(service, "why", task_id)
    assert (why.returncode, why.stdout.split(": ")[0]) == (0, f"{task_id} EXECUTOR_ERROR")
    assert "3" in why.stdout

    changes = tmp_path / "changes.json"
    changes.write_text(json.dumps({"name": "two", "executors": [sh("true")]}))
    again = task(service, "rerun", task_id, "--changes", str(changes), "--wait", "--json")
    assert again.returncode == 0, again.stderr
    copy = service.get(json.loads(again.stdout)["tasks"][0]["id"])
    assert (copy["name"], copy["state"], copy["tags"]["rerun_of"]) == ("two", "COMPLETE", task_id)


def test_run_shows_the_output_and_exits_as_the_command_did(service: Service, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("world\n")
    content = f"{tmp_path}/names.txt:/in/names.txt"
    script = 'echo "hello $(cat /in/names.txt) $WORD"; echo loud >&2; exit $CODE'
    for code in ("0", "7"):
        options = ["--input-content", content, "--env", "WORD=again", "--env", f"CODE={code}", "--tag", "run=cli"]
        done = run_poiesis("run", *options, "alpine", "--", "sh", "-c", script, POIESIS_URL=service.url)
        assert (done.returncode, done.stdout) == (int(code), "hello world again\n")
        assert "loud\n" in done.stderr and "created task" in done.stderr
    listed = task(service, "list", "--tag", "run=cli", "--since", "1h", "--columns", "exit,state", "--no-header")
    assert sorted(listed.stdout.split()) == ["0", "7", "COMPLETE", "EXECUTOR_ERROR"]


def test_run_follows_a_whole_log(make_service: Callable[..., Service], tmp_path: Path) -> None:
    service = make_service(POIESIS_LOGS__URL=(tmp_path / "logs").as_uri()).start()
    script = "for i in 1 2 3; do echo $i; echo e$i >&2; sleep 0.3; done; head -c 100000 /dev/zero | tr '\\0' x"
    done = run_poiesis("run", "-q", "alpine", "--", "sh", "-c", script, POIESIS_URL=service.url)
    assert (done.returncode, done.stdout) == (0, "1\n2\n3\n" + "x" * 100000)
    assert done.stderr == "e1\ne2\ne3\n"


@pytest.mark.parametrize("method", ["basic", "api_key"])
def test_the_commands_that_up_and_the_form_show_work_with_authentication(tmp_path: Path, method: str) -> None:
    users = [{"name": "ada", "password_hash": hash_secret("p", "basic"), "token_hash": hash_secret("t", "bearer")}]
    (tmp_path / "users.json").write_text(json.dumps(users))
    auth: dict[str, Any] = {"POIESIS_API__AUTH": method, "POIESIS_API__CREDENTIALS_FILE": str(tmp_path / "users.json")}
    with Service(tmp_path / "service", **auth) as service:
        key = ""
        if method == "api_key":
            create = ("key", "create", "k", "--user", "ada", "--local", "--dir", str(service.directory))
            key = run_poiesis(*create, **auth).stdout.strip()
        lines = service.log.read_text().partition("Try:\n")[2]
        for name, value in (("=USER", "=ada"), ("=PASSWORD", "=p"), ("=TOKEN", "=t"), ("=KEY", f"={key}")):
            lines = lines.replace(name, value)
        functions = f'poiesis() {{ {shlex.join(command())} "$@"; }}; curl() {{ command curl -f "$@"; }}'
        script = ["sh", "-ec", f"{functions}\n{lines}"]
        done = subprocess.run(script, capture_output=True, text=True, env=environment(), check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("hello\n") and done.stdout.count('"tasks"') == 1
        login = {"X_API_Key": key} if key else {"Authorization": f"Basic {b64encode(b'ada:p').decode()}"}
        page = request("GET", f"{service.url}/ui/new?example=hello", **login).text
        for way in ("curl", "cli"):
            [shown] = re.findall(rf'<pre id="code-{way}"[^>]*>(.*?)</pre>', page, re.S)
            script = ["sh", "-ec", f"{functions}\n{html.unescape(shown)}"]
            variables = environment(TES_USER="ada", TES_PASSWORD="p", TES_KEY=key)
            done = subprocess.run(script, capture_output=True, text=True, env=variables, check=False)
            assert done.returncode == 0 and done.stdout.strip(), done.stderr
