"""What a task's command can see and reach, and where secrets must never appear."""

from __future__ import annotations

import base64
from typing import Final

from tests.e2e.conftest import S3_PASSWORD, S3_SECRET, Json
from tests.e2e.site import (
    TASK_LABEL,
    Site,
    assert_not_hijacked,
    content,
    failure,
    hijack,
    one_log,
    posted,
    shell,
    why,
)

URL_PASSWORD: Final = "must-never-be-shown"
LOOK: Final = r"""
for f in /proc/self/environ /proc/1/environ; do tr '\0' '\n' < $f > /seen/env-$(echo $f | tr / -); done
cat /proc/self/mounts > /seen/mounts
cat /proc/self/status > /seen/status
find / -xdev -name token -o -xdev -name '*.kubeconfig' > /seen/tokens 2>/dev/null
ls -laR /var/run/secrets /run/secrets > /seen/secrets 2>/dev/null
ls -laR /poiesis > /seen/poiesis 2>/dev/null
cat /poiesis/control/* > /seen/control 2>/dev/null
for i in /proc/[0-9]*; do tr '\0' ' ' < $i/cmdline; echo; done > /seen/processes
true
"""


def _inspects_its_environment(site: Site) -> Json:
    host = site.web.removeprefix("http://")
    return {
        "inputs": [
            {"url": f"http://user:{URL_PASSWORD}@{host}/secret/file", "path": "/data/in"},
            {"url": site.put("looked/in", b"x"), "path": "/data/s3"},
        ],
        "executors": [shell(LOOK, env={"MINE": "1"})],
        "volumes": ["/seen"],
        "outputs": [{"path": "/seen", "url": site.url("looked/seen"), "type": "DIRECTORY"}],
    }


@posted(_inspects_its_environment)
def test_a_command_sees_no_token_no_credential_and_nothing_of_the_service(site: Site, task: str):
    site.complete(task)
    seen = {name: (site.got(f"looked/seen/{name}") or b"").decode() for name in site.keys("looked/seen/")}
    environment = {line.split("=")[0] for name in seen if name.startswith("env-") for line in seen[name].splitlines()}
    assert "MINE" in environment
    # the kubelet always sets the variables of the API server's Service
    foreign = {n for n in environment if not n.startswith(("KUBERNETES_SERVICE_", "KUBERNETES_PORT"))}
    assert not [n for n in foreign if n.startswith(("AWS", "POIESIS", "KUBERNETES", "MONGO", "REDIS", "TES_", "S3_"))]
    assert not [n for n in foreign if "SERVICE_HOST" in n or "_PORT" in n], "not even the names of services"
    assert seen["tokens"] == ""
    assert "serviceaccount" not in seen["mounts"] + seen["secrets"]
    targets = [line.split()[1] for line in seen["mounts"].splitlines()]
    assert [t for t in targets if t.startswith("/poiesis")] == ["/poiesis/bin", "/poiesis/control"]
    status = dict(line.split(":", 1) for line in seen["status"].splitlines() if ":" in line)
    assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
    assert "poiesis.filer" not in seen["processes"]
    for name, text in seen.items():
        assert S3_PASSWORD not in text, name
        assert URL_PASSWORD not in text, name


@posted(
    lambda site: {
        "inputs": [
            {"url": f"http://user:{URL_PASSWORD}@{site.web.removeprefix('http://')}/status/403", "path": "/data/in"}
        ],
        "executors": [shell("true")],
        "outputs": [{"path": "/data/out", "url": site.url("never")}],
    }
)
def test_an_error_names_the_url_without_its_password(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert "403" in why(found)
    assert URL_PASSWORD not in str(found["logs"])


@posted(lambda site: {"executors": [shell("true")], "resources": {"disk_gb": 0.1}})
def test_every_pod_of_every_task_is_confined(site: Site, task: str):
    """Also those of tasks posted by other tests."""
    site.complete(task)
    site.until(lambda: site.pods.of(task), 30, "the pod was not seen")
    for pod in site.pods.all():
        spec, name = pod["spec"], pod["metadata"]["name"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["restartPolicy"] == "Never", name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")), name
        assert not [v for v in spec["volumes"] if "hostPath" in v], name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert not security.get("privileged"), name
            mounts = {m["name"] for m in container["volumeMounts"]}
            assert not [m for m in container["volumeMounts"] if "serviceaccount" in m["mountPath"]], name
            if container["name"] in ("tif", "tof"):
                assert container["envFrom"] == [{"secretRef": {"name": S3_SECRET}}], name
                assert security["runAsNonRoot"] is True, name
                assert security["readOnlyRootFilesystem"] is True, name
                assert security["capabilities"] == {"drop": ["ALL"]}, name
            else:
                assert "envFrom" not in container, name
                assert not [e for e in container.get("env", []) if "valueFrom" in e], name
                assert not {"documents"} & mounts, name


@posted(lambda site: hijack(site, "hijacked/single"))
def test_a_command_cannot_redirect_the_upload_of_its_own_pod(site: Site, task: str):
    """With /etc/hosts, /etc/resolv.conf, and a listener at that address."""
    found = site.complete(task)
    pods = site.pods.of(task).values()
    assert [[c["name"] for c in pod["spec"]["containers"]] for pod in pods] == [["tif", "executor-0", "tof"]]
    assert "127.0.0.1 s3." in one_log(found)["logs"][0]["stdout"], "the attack did not run"
    assert_not_hijacked(site, found, "hijacked/single")


@posted(lambda site: {"executors": [shell("grep -E '^Cap(Eff|Bnd)' /proc/self/status")]})
def test_a_command_cannot_read_the_traffic_of_its_pod(site: Site, task: str):
    """NET_RAW is needed to open a raw or packet socket."""
    log = one_log(site.complete(task))["logs"][0]
    capabilities = [int(line.split()[1], 16) for line in log["stdout"].splitlines()]
    assert len(capabilities) == 2
    assert not [c for c in capabilities if c & 1 << 13], log["stdout"]


SWAP: Final = r"""
import os, time
control, results = "/poiesis/control/", "/data/results/"
secrets = "/poiesis/task/tof.json", "/poiesis/task/filer.json", "/proc/self/environ"
os.makedirs(results + "directory")
for name in ("tof.json", "filer.json", "environ"):
    open(results + "directory/" + name, "w").write("mine")
os.symlink("/poiesis/task", results + "link")
for i in range(100):
    open(results + f"file-{i}", "w").write("mine")
open(control + "early", "w").write('{"ok": true}')
os.rename(control + "early", control + "executor-0.json")  # TOF starts while this command still runs
swaps, end = 0, time.monotonic() + 8
while time.monotonic() < end:
    for i in range(100):
        new = results + ".new"
        if (swaps + i) % 3 == 0:
            os.symlink(secrets[i % 3], new)
        elif (swaps + i) % 3 == 1:
            os.mkfifo(new)
        else:
            open(new, "w").write("mine")
        os.rename(new, results + f"file-{i}")
    for old, new in (("directory", "aside"), ("link", "directory"), ("directory", "link"), ("aside", "directory")):
        os.rename(results + old, results + new)
    swaps += 1
print(swaps)
"""


@posted(
    lambda site: {
        "inputs": [content("/data/in", "x")],
        "executors": [{"image": site.service.image, "command": ["python", "-c", SWAP]}],
        "outputs": [{"path": "/data/results", "url": site.url("swapped"), "type": "DIRECTORY"}],
        "resources": {"backend_parameters": {"optional_outputs": "true"}},
    }
)
def test_names_swapped_during_the_upload_show_nothing_of_the_filer(site: Site, task: str):
    """Files and directories of an output become links to the filer's documents and environment while it uploads them."""
    found = site.ended(task)
    assert int(one_log(found)["logs"][0]["stdout"]) > 10, "the attack was tried"
    uploaded = site.keys("swapped/")
    assert {site.got(f"swapped/{name}") for name in uploaded} <= {b"mine", b""}


STOP: Final = """
import ctypes, time
print(ctypes.CDLL(None).ptrace(16, 1, 0, 0), flush=True)  # PTRACE_ATTACH
time.sleep(600)
"""


@posted(
    lambda site: {
        "executors": [{"image": site.service.image, "command": ["python", "-c", STOP]}],
        "resources": {"backend_parameters": {"time_limit": "5s"}},
    }
)
def test_a_command_cannot_stop_its_launcher_to_evade_the_time_limit(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert failure(found) == "TimeLimit"
    assert one_log(found)["logs"][0]["stdout"] == "-1\n"


FORGE: Final = r"""
import http.client, re
own = re.search(rb"--poke\0([^/]+)/poke/[0-9a-z]+/([0-9a-f-]+)\0", open("/proc/1/cmdline", "rb").read())
address, nonce = own[1].decode(), own[2].decode()
record = '{"v": 1, "name": "executor-0", "ok": true, "exit_code": 0, "stdout": "forged", "stderr": ""}'
for guess in (nonce, "0", "f" * 64, *(f"{i:016x}-1-1" for i in range(50))):
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("POST", f"/poke/VICTIM/{guess}", record)
    assert connection.getresponse().status in (202, 404, 429)
print("VICTIM")
"""


def _forges(site: Site) -> Json:
    victim = site.post({"executors": [shell("sleep 20; exit 5")]})
    return {"executors": [{"image": site.service.image, "command": ["python", "-c", FORGE.replace("VICTIM", victim)]}]}


@posted(_forges)
def test_a_task_cannot_end_another_one_with_forged_records(site: Site, task: str):
    """It knows the other task's id, but not the nonce in its pod."""
    victim = one_log(site.complete(task))["logs"][0]["stdout"].strip()
    (log,) = one_log(site.wait(victim, ("EXECUTOR_ERROR",)))["logs"]
    assert (log["exit_code"], log["stdout"]) == (5, "")


DRIP: Final = r"""
drip() { (printf 'POST /poke/a/0f HTTP/1.1\r\nContent-Length: 9999\r\n\r\n'; sleep 60) | nc $MONITOR $1 >/dev/null 2>&1; }
for port in 8082 8081; do for i in $(seq 256); do drip $port & done; done
sleep 25
"""
HEALTH: Final = """
import time, urllib.request
for _ in range(20):
    began = time.monotonic()
    assert urllib.request.urlopen("http://127.0.0.1:8081/healthz", timeout=5).status == 200
    print(round(time.monotonic() - began, 3))
    time.sleep(0.2)
"""


@posted(
    lambda site: {
        "executors": [shell(DRIP, env={"MONITOR": f"{site.service.fullname}-monitor.{site.service.namespace}.svc"})]
    }
)
def test_dripping_connections_of_a_task_do_not_shut_the_monitors_health(site: Site, task: str):
    """512 of them, to the ports for pokes and health checks (which is only protected where NetworkPolicy is enforced)."""
    site.wait(task, ("RUNNING",))
    lines = site.service.kubectl(
        "exec", f"deploy/{site.service.fullname}-monitor", "--", "python", "-c", HEALTH
    ).split()
    assert len(lines) == 20
    assert max(map(float, lines)) < 2
    site.complete(task)
    pods = site.service.get("pods", "-l", "app.kubernetes.io/component=monitor")
    assert [s["restartCount"] for pod in pods for s in pod["status"]["containerStatuses"]] == [0]


def test_secrets_appear_in_no_log_and_no_document(site: Site, tasks_posted: object):
    """Passwords of S3, store and broker, and the one in a task's URL."""
    service = site.service
    secrets = {URL_PASSWORD, S3_PASSWORD}
    for secret in service.get("secrets", "-l", f"app.kubernetes.io/instance={service.release}"):
        if TASK_LABEL in secret["metadata"].get("labels", {}):
            continue
        for value in secret.get("data", {}).values():
            text = base64.b64decode(value).decode()
            if "@" in text:  # a connection string: its password
                secrets.add(text.split("@")[0].rsplit(":", 1)[-1])
            elif "://" not in text and len(text) >= 8:
                secrets.add(text)
    assert len(secrets) >= 3, "no secrets were found"
    shown = service.kubectl("get", "events", "-o", "json")
    shown += service.kubectl("get", "pods,persistentvolumeclaims,configmaps,deployments", "-o", "json")
    for component in ("api", "torc", "tif", "texam", "tof", "monitor"):
        selector = f"app.kubernetes.io/instance={service.release},app.kubernetes.io/component={component}"
        output = service.kubectl("logs", "-l", selector, "--tail=-1", "--all-containers")
        assert output or component not in ("torc", "monitor"), "roles without work log nothing about the task"
        shown += output
    token = None
    while True:
        query = f"&page_token={token}" if token else ""
        status, page = service.call("GET", f"/tasks?view=FULL{query}")
        assert status == 200
        shown += "".join(str(one_log(t)) for t in page["tasks"])
        token = page.get("next_page_token")
        if not token:
            break
    assert [s for s in secrets if s in shown] == []
