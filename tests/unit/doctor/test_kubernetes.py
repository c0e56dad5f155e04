"""Checks of a cluster against a scripted API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from kubernetes.client import Configuration

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.quantities import quantity
from poiesis.cluster.kubernetes.rights import RIGHTS, rights_of
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.doctor import kubernetes as checks
from poiesis.doctor.plan import checks_for
from poiesis.doctor.result import Finding, Status
from poiesis.doctor.site import read_site
from poiesis.doctor.trial import with_secrets
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request

Make = Callable[..., checks.Api]
FORBIDDEN = 'pods is forbidden: User "system:serviceaccount:a:b" cannot create resource "pods"'


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


@pytest.fixture
def make(server: ApiServer) -> Make:
    def api(**environ: str) -> checks.Api:
        given = {f"POIESIS_KUBERNETES__{name}": value for name, value in environ.items()}
        made = checks.Api(read_site({"POIESIS_KUBERNETES__NAMESPACE": "tasks"} | given))
        made.__dict__["client"] = Client(made.settings, Configuration(host=server.url, retries=0), sleep=lambda _: None)
        return made

    return api


def refusing(message: str, status: int = 403) -> Callable[[Request], Answer]:
    return lambda request: Answer(status=status, body={"reason": "Forbidden", "message": message})


def listing(*items: dict[str, Any]) -> Callable[[Request], Answer]:
    return lambda request: Answer({"items": list(items)})


def only(found: Iterator[Finding]) -> Finding:
    [finding] = found
    if finding.status in (Status.ERROR, Status.WARNING):
        assert finding.what and finding.follows and finding.repair
    return finding


def test_every_missing_right_is_named(server: ApiServer, make: Make) -> None:
    def answer(request: Request) -> Answer:
        wanted = request.body["spec"]["resourceAttributes"]
        assert wanted["namespace"] == "tasks"
        return Answer({"status": {"allowed": (wanted["resource"], wanted["verb"]) != ("pods", "create")}}, status=201)

    server.answer = answer
    found = only(checks.check_rights(make(), "texam", None))
    assert (
        found.status is Status.ERROR
        and "the service account of texam may not: create pods (namespace tasks)" in found.what
    )
    assert {r.path for r in server.requests} == {"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"}
    assert only(checks.check_rights(make(), "torc", None)).status is Status.OK


def test_rights_of_another_account_are_asked_in_the_tasks_namespace(server: ApiServer, make: Make) -> None:
    server.answer = lambda request: Answer({"status": {"allowed": True}}, status=201)
    assert only(checks.check_rights(make(), "monitor", "services:tes-monitor")).status is Status.OK
    [path] = {r.path for r in server.requests}
    assert path == "/apis/authorization.k8s.io/v1/namespaces/tasks/localsubjectaccessreviews"
    spec = server.requests[0].body["spec"]
    assert spec["user"] == "system:serviceaccount:services:tes-monitor"
    assert "system:serviceaccounts:services" in spec["groups"]


def test_the_right_to_list_nodes_is_one_of_the_cluster(server: ApiServer, make: Make) -> None:
    server.answer = lambda request: Answer({"status": {"allowed": False}}, status=201)
    found = only(checks.check_node_rights(make(), None))
    assert found.status is Status.WARNING and "the service account of monitor may not: list nodes" in found.what
    assert "rbac.readNodes=false" in found.repair
    assert [r.body["spec"]["resourceAttributes"] for r in server.requests] == [{"resource": "nodes", "verb": "list"}]
    server.requests.clear()
    server.answer = lambda request: Answer({"status": {"allowed": True}}, status=201)
    assert only(checks.check_node_rights(make(), "services:tes-monitor")).status is Status.OK
    [request] = server.requests
    assert request.path == "/apis/authorization.k8s.io/v1/namespaces/tasks/localsubjectaccessreviews"
    assert request.body["spec"]["user"] == "system:serviceaccount:services:tes-monitor"
    assert request.body["spec"]["resourceAttributes"]["namespace"] == "tasks"


def test_the_rights_asked_for_are_those_of_the_list() -> None:
    settings = KubernetesSettings(namespace="tasks", owner="tes-tasks")
    for role, resources in RIGHTS.items():
        asked = {
            (r.resource + (f"/{r.subresource}" if r.subresource else ""), r.verb) for r in rights_of(role, settings)
        }
        assert asked == {(resource, verb) for resource, verbs in resources.items() for verb in verbs}
    assert {r.name for r in rights_of("torc", settings) if r.resource == "configmaps"} == {"tes-tasks"}
    assert {r.name for r in rights_of("monitor", settings) if r.resource == "leases"} == {"poiesis-monitor"}
    assert not list(rights_of("api", settings))
    kueue = KubernetesSettings(queue="small")
    assert "get localqueues.visibility.kueue.x-k8s.io/pendingworkloads" in set(map(str, rights_of("monitor", kueue)))


@pytest.mark.parametrize(
    ("message", "repair"),
    [
        ("pods is forbidden: no PriorityClass with name nope was found", "get priorityclasses"),
        ('pods is forbidden: pod rejected: RuntimeClass "nope" not found', "get runtimeclasses"),
        (
            'pods is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            "tasks.podSecurity=restricted",
        ),
        ("pods is forbidden: failed quota: q: must specify limits.memory for: tif", "tasks.defaults"),
        ("pods is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5", "Raise the quota"),
        ("pods is forbidden: maximum memory usage per Container is 512Mi, but limit is 1Gi", "LimitRange"),
        (
            "pods is forbidden: [minimum memory usage per Container is 64Mi, but request is 0, minimum cpu usage per Container is 1, "
            "but request is 100m]",
            'MIN_REQUESTS={"memory": "64Mi", "cpu": "1"}',
        ),
        (
            "pods is forbidden: memory max limit to request ratio per Container is 2, but no request is specified or request is 0",
            "Remove maxLimitRequestRatio",
        ),
        (
            "pods is forbidden: error looking up service account tasks/x: serviceaccount not found",
            "tasks.serviceAccountName",
        ),
        ('admission webhook "validate.kyverno.svc" denied the request: no', "admission webhook"),
        ("something new", "policy that it names"),
    ],
)
def test_why_the_pods_of_tasks_are_refused(server: ApiServer, make: Make, message: str, repair: str) -> None:
    def answer(request: Request) -> Answer:
        assert request.query == {"dryRun": "All"} and request.method == "POST"
        return refusing(message)(request) if request.path.endswith("/pods") else Answer({}, status=201)

    server.answer = answer
    found = only(checks.check_admission(make()))
    assert found.status is Status.ERROR and message in found.what and repair in found.repair


@pytest.mark.parametrize("given", [{}, {"MIN_REQUESTS": '{"cpu": "250m", "memory": "64Mi"}'}])
def test_a_limit_range_with_a_minimum_is_met_by_tasks_with_two_executors(
    server: ApiServer, make: Make, given: dict[str, str]
) -> None:
    """As the plug-in does it: what is not requested gets a default, and every request has to reach the minimum."""
    least = {"cpu": "250m", "memory": "64Mi"}

    def answer(request: Request) -> Answer:
        for container in request.body["spec"].get("containers", ()):
            requests = least | container.get("resources", {}).get("requests", {})
            for name, amount in requests.items():
                if quantity(amount) < quantity(least[name]):
                    message = f"minimum {name} usage per Container is {least[name]}, but request is {amount}"
                    return refusing(f"pods is forbidden: {message}")(request)
        return Answer({}, status=201)

    server.answer = answer
    found = only(checks.check_admission(make(**given)))
    if given:
        assert found.status is Status.OK
    else:
        assert "the pod of tasks with two executors is refused" in found.what and found.follows == "Such tasks fail."


def test_each_class_of_a_site_is_tried_and_nothing_is_created(server: ApiServer, make: Make) -> None:
    def answer(request: Request) -> Answer:
        wanted = request.body["spec"].get("priorityClassName")
        return (
            refusing(f"no PriorityClass with name {wanted} was found")(request)
            if wanted == "b"
            else Answer({}, status=201)
        )

    server.answer = answer
    found = only(
        checks.check_admission(make(PRIORITY_CLASSES="a,b", NODE_CLASSES='{"big": {"runtime_class": "kata"}}'))
    )
    assert "the pod of priority class b is refused" in found.what and found.follows == "Such tasks fail."
    pods = [r for r in server.requests if r.path.endswith("/pods")]
    assert {(p.body["spec"].get("priorityClassName"), p.body["spec"].get("runtimeClassName")) for p in pods} == {
        (None, None),
        ("a", None),
        ("b", None),
        (None, "kata"),
    }
    assert all(r.query == {"dryRun": "All"} for r in server.requests)


def test_what_this_account_may_not_do_is_skipped(server: ApiServer, make: Make) -> None:
    server.answer = refusing(FORBIDDEN)
    api = make()
    assert only(checks.check_admission(api)).status is Status.SKIPPED
    for check in (checks.check_quotas, checks.check_storage_class, checks.check_network_policy, checks.check_namespace):
        assert only(checks.guarded("x", partial(check, api))).status is Status.SKIPPED


def namespace(label: str | None, phase: str = "Active") -> Callable[[Request], Answer]:
    labels = {} if label is None else {checks.ENFORCE: label}
    return lambda request: Answer({"metadata": {"labels": labels}, "status": {"phase": phase}})


@pytest.mark.parametrize(
    ("label", "settings", "words"),
    [
        (None, {}, None),
        ("baseline", {}, None),
        ("restricted", {}, "enforces Pod Security restricted, and pods of tasks need baseline"),
        ("restricted", {"POD_SECURITY": "restricted", "RUN_AS_USER": "65532"}, None),
        ("restricted", {"POD_SECURITY": "restricted"}, "without tasks.runAsUser"),
        ("baseline", {"CACHE_VOLUME__HOST_PATH": "/var/cache/tes"}, "the input cache is a hostPath"),
    ],
)
def test_pod_security(
    server: ApiServer, make: Make, label: str | None, settings: dict[str, str], words: str | None
) -> None:
    server.answer = namespace(label)
    found = only(checks.check_namespace(make(**settings)))
    assert found.status is Status.OK if words is None else words in found.what


def test_a_namespace_that_is_missing_or_going(server: ApiServer, make: Make) -> None:
    assert "kubectl create namespace tasks" in only(checks.check_namespace(make())).repair
    server.answer = namespace(None, "Terminating")
    assert "being deleted" in only(checks.check_namespace(make())).what


def test_storage_classes(server: ApiServer, make: Make) -> None:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    server.answer = listing({"metadata": {"name": "fast"}}, {"metadata": {"name": "slow"}})
    assert "no StorageClass is the default one (there are: fast, slow)" in only(checks.check_storage_class(make())).what
    assert "fast, slow" in only(checks.check_storage_class(make(STORAGE_CLASS="nope"))).repair
    assert only(checks.check_storage_class(make(STORAGE_CLASS="fast"))).status is Status.OK
    server.answer = listing({"metadata": {"name": "fast", "annotations": default}})
    assert only(checks.check_storage_class(make())).what == "default StorageClass fast"


def test_a_quota_that_is_nearly_used_up(server: ApiServer, make: Make) -> None:
    status = {"hard": {"pods": "10", "requests.memory": "1Gi"}, "used": {"pods": "9", "requests.memory": "100Mi"}}
    server.answer = listing({"metadata": {"name": "q"}, "status": status})
    assert only(checks.check_quotas(make())).what == "ResourceQuota q: 9 of 10 pods are used"


def test_objects_that_do_not_exist(server: ApiServer, make: Make) -> None:
    *found, last = checks.check_objects(make(QUEUE="small", LOGS_CLAIM="logs", OWNER="tes-tasks"))
    assert [f.what.split(" in ")[0] for f in found] == [
        "there is no persistentvolumeclaim logs",
        "there is no configmap tes-tasks",
        "there is no LocalQueue small",
    ]
    assert last.what == "objects that the settings name: 0, all exist"


def test_policies_that_select_the_pods_of_tasks(server: ApiServer, make: Make) -> None:
    def policy(**labels: str) -> dict[str, Any]:
        spec = {
            "policyTypes": ["Egress"],
            "podSelector": {"matchLabels": {k.replace("_", "/"): v for k, v in labels.items()}},
        }
        return {"metadata": {"name": "p"}, "spec": spec}

    server.answer = listing(policy(app="web"))
    assert only(checks.check_network_policy(make())).status is Status.WARNING
    server.answer = listing(policy(**{"app.kubernetes.io_component": "task"}))
    assert only(checks.check_network_policy(make())).status is Status.OK


def test_a_monitor_that_does_not_lead(server: ApiServer, make: Make) -> None:
    assert "has no current holder" in only(checks.check_monitor(make())).what

    def lease(age_s: float) -> Callable[[Request], Answer]:
        renewed = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat().replace("+00:00", "Z")
        return lambda request: Answer({"spec": {"holderIdentity": "m-0", "renewTime": renewed}})

    server.answer = lease(500)
    assert "last sign 50" in only(checks.check_monitor(make())).what
    server.answer = lease(2)
    assert only(checks.check_monitor(make())).what == "m-0 leads"


def test_an_api_server_that_does_not_answer_or_is_old(server: ApiServer, make: Make) -> None:
    server.answer = lambda request: None
    assert "does not respond" in only(checks.check_api_server(make())).what
    server.answer = lambda request: Answer({"major": "1", "minor": "24+", "gitVersion": "v1.24.1"})
    assert [f.status for f in checks.check_api_server(make())] == [Status.WARNING, Status.OK]


def test_what_tasks_must_not_reach_has_no_credentials(make: Make) -> None:
    api = make()
    object.__setattr__(api.site.settings, "mongo_uri", "mongodb://u:p@db.example:27018/x")
    targets = checks.targets_of(api)
    assert ("MongoDB", "db.example", 27018) in targets and "169.254.169.254" in str(targets)


def test_secrets_are_mounted_in_the_filer_only() -> None:
    containers = [{"name": "tif", "volumeMounts": []}, {"name": "executor-0", "volumeMounts": []}]
    made = with_secrets({"kind": "Pod", "spec": {"volumes": [], "containers": containers}}, ("a", "b"))
    tif, executor = made["spec"]["containers"]
    assert [m["mountPath"] for m in tif["volumeMounts"]] == ["/poiesis/doctor/a", "/poiesis/doctor/b"]
    assert executor["volumeMounts"] == [] and containers[0]["volumeMounts"] == []
    assert all(v["secret"]["optional"] for v in made["spec"]["volumes"])


def test_a_role_asks_about_its_own_rights_and_all_others_are_asked_by_account() -> None:
    names = [c.name for c in checks_for(read_site({}, role="torc", trial=False))]
    assert "rights-torc" in names and "trial" not in names and "admission" not in names
    accounts = {"torc": "ns:a", "tif": "ns:b"}
    names = [c.name for c in checks_for(read_site({}, mode="kubernetes", accounts=accounts))]
    assert {"rights-torc", "rights-tif", "trial", "admission", "storage-class", "network-policy"} <= set(names)


def test_the_right_to_list_nodes_is_checked_only_where_they_are_read() -> None:
    reads = {"POIESIS_KUBERNETES__READ_NODES": "true"}
    account = {"monitor": "ns:a"}

    def checked(environ: dict[str, str], **options: Any) -> bool:
        return "rights-nodes" in [c.name for c in checks_for(read_site(environ, mode="kubernetes", **options))]

    assert checked(reads, role="monitor") and checked(reads, accounts=account)
    assert not checked({}, role="monitor") and not checked({}, accounts=account)
    assert not checked(reads, role="torc") and not checked(reads)
