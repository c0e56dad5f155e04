"""The chart's guarantees: security contexts, permissions, network policies, names of settings."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import yaml

import poiesis
from poiesis.bootstrap import ADAPTER_PREFIXES, FILER_PREFIX, KUBERNETES_PREFIX
from poiesis.cli.parser import make_parser
from poiesis.cluster.kubernetes import labels
from poiesis.cluster.kubernetes.pods import pod
from poiesis.cluster.kubernetes.rights import KUEUE_RIGHTS, NODE_RIGHTS, RIGHTS
from poiesis.cluster.kubernetes.settings import CacheVolume, KubernetesSettings, Placement
from poiesis.config import Settings, read
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules, Quota, ServiceClass
from poiesis.domain.task import Executor, Input, Output, Task, TaskId, TaskSpec
from poiesis.filer.settings import FilerSettings
from tests.unit.helm.conftest import CASES, CHART, NAMESPACE, RELEASE, Json, Rendered, Run

ROLES: Final = ("torc", "tif", "texam", "tof", "monitor")
OURS: Final = ("api", *ROLES, "notifier", "flower")
TESTS: Final = ("test", "doctor")  # pods of `helm test`


def containers(template: Json) -> Iterator[Json]:
    yield from template["spec"].get("initContainers", [])
    yield from template["spec"]["containers"]


def strings(value: Any) -> Iterator[str]:
    """Every string in a document, including keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def matches(selector: Json, found: dict[str, str]) -> bool:
    """Whether a Kubernetes label selector matches."""
    if any(found.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(rule, found) for rule in selector.get("matchExpressions") or [])


def _holds(rule: Json, found: dict[str, str]) -> bool:
    key, operator = rule["key"], rule["operator"]
    if operator in ("In", "NotIn"):
        return (found.get(key) in rule["values"]) is (operator == "In")
    assert operator in ("Exists", "DoesNotExist")
    return (key in found) is (operator == "Exists")


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_values_files_for_every_case():
    assert set(CASES) >= {"external", "bundled", "everything", "openshift", "restricted"}


@pytest.mark.parametrize("case", CASES)
def test_helm_lint_reports_nothing(helm: Run, case: str):
    done = helm("lint", "--strict", str(CHART), "-f", str(CHART / "ci" / f"{case}-values.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_installs_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == poiesis.__version__


def test_every_component_has_a_directory():
    directories = {p.name for p in (CHART / "templates").iterdir() if p.is_dir()}
    assert directories >= {*OURS, "mongodb", "redis"}


def test_objects_are_unique_and_have_a_namespace(chart: Rendered):
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in chart.objects]
    assert len(keys) == len(set(keys))
    tasks = (chart.given.get("tasks") or {}).get("namespace", NAMESPACE)
    grafana = chart.given.get("metrics", {}).get("dashboards", {}).get("namespace", NAMESPACE)
    assert {space for kind, space, _ in keys if not kind.startswith("ClusterRole")} <= {NAMESPACE, tasks, grafana}
    assert all(len(name) <= 63 for _, _, name in keys)


def test_every_object_has_the_recommended_labels(chart: Rendered):
    for item in chart.objects:
        found = item["metadata"]["labels"]
        assert found["app.kubernetes.io/instance"] == RELEASE
        assert found["app.kubernetes.io/component"]
        assert found["app.kubernetes.io/managed-by"] == "Helm"


def test_the_only_cluster_scoped_objects_are_those_that_let_the_monitor_list_nodes_if_the_site_wants_it(
    chart: Rendered,
):
    assert not chart.of("Namespace", "CustomResourceDefinition")
    if not chart.given.get("rbac", {}).get("readNodes"):
        assert not chart.of("ClusterRole", "ClusterRoleBinding")
        assert chart.variables().get("POIESIS_KUBERNETES__READ_NODES") in (None, "false")
        return
    [role], [binding] = chart.of("ClusterRole"), chart.of("ClusterRoleBinding")
    [rule] = role["rules"]
    assert {kind: set(rule["verbs"]) for kind in rule["resources"]} == NODE_RIGHTS and rule["apiGroups"] == [""]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] and role["metadata"]["name"].endswith("-nodes")
    [subject] = binding["subjects"]
    monitor = dict(chart.pods())["monitor"]
    assert (subject["name"], subject["namespace"]) == (monitor["spec"]["serviceAccountName"], NAMESPACE)
    assert role["metadata"]["name"].startswith(NAMESPACE)
    assert chart.variables()["POIESIS_KUBERNETES__READ_NODES"] == "true"


def test_a_long_release_name_gives_valid_names(helm: Run):
    name = "a-very-long-release-name-that-a-site-may-really-choose"[:53]
    values = str(CHART / "ci" / "bundled-values.yaml")
    done = helm("template", name, str(CHART), "--kube-version", "1.31.0", "-f", values)
    assert done.returncode == 0, done.stderr
    assert all(len(o["metadata"]["name"]) <= 63 for o in yaml.safe_load_all(done.stdout) if o)


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("replica=3", "replica"),
        ("api.replica=3", "replica"),
        ("tasks.networkPolicy.internett=true", "internett"),
        ("tasks.preemptible.node_selector.a=b", "node_selector"),
        ("filer.s3[0].name=a,filer.s3[0].secretKey=b", "secretKey"),
        ("filer.s3[0].name=a,filer.s3[0].url=https://user:word@example.org", "url"),
        ("tasks.podSecurity=privileged", "podSecurity"),
        ("settings.HOME=x", "HOME"),
        ("torc.threads=none", "threads"),
        ("tasks.keep=soon", "keep"),
        ("filer.cache.hostPath=cache", "hostPath"),
        ("filer.cache.hostPath=/var", "hostPath"),
        ("filer.cache.subPath=/a,filer.cache.existingClaim=c", "subPath"),
    ],
)
def test_values_unknown_to_the_schema_are_rejected(template: Run, wrong: str, words: str):
    done = template("-f", str(CHART / "ci" / "external-values.yaml"), "--set", wrong)
    assert done.returncode != 0
    assert words in done.stderr


def test_every_object_of_the_schema_is_closed_or_intentionally_open():
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_ones = {
        "object",
        "settings",
        "nodeClasses",
        "serviceClasses",
        "queues",
        "users",
        "groups",
        "classes",
        "fileSecrets",
        "cloud",
        "strings",
        "requests",
        "limits",
    }

    def check(node: Any, name: str) -> None:
        if not isinstance(node, dict):
            return
        if node.get("type") == "object" and "properties" in node:
            assert node.get("additionalProperties") is False, name
        elif node.get("type") == "object":
            assert name in {*open_ones, "global", "items"}, name
        for key in ("properties", "$defs"):
            for inner, value in node.get(key, {}).items():
                check(value, inner)
        check(node.get("items"), "items")

    check(schema, "")


QUOTAS: Final = ("site", "user", "group")


def test_the_schema_and_the_values_have_the_same_names():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    pod_keys = set(values["pods"])

    def resolve(node: Json) -> Json:
        found: Json = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        return found

    def check(node: Json, value: Any, at: str) -> None:
        node = resolve(node)
        if "properties" not in node:
            return
        known, present = set(node["properties"]), set(value or {})
        assert present <= known, at
        optional = pod_keys if pod_keys <= known and at != ".pods" else set()
        missing = known - present - optional - {"global", "minAvailable", "claims"}
        if at.rpartition(".")[2] not in {
            "preemptible",
            "onDemand",
            "placement",
            "resources",
            "requests",
            "limits",
            *QUOTAS,
        }:
            assert not missing, f"{at}: values.yaml does not show {missing}"
        for key in present:
            check(node["properties"][key], value[key], f"{at}.{key}")

    check(schema, values, "")


SECRET_ISSUER: Final = '{"name": "a", "url": "https://a", "audiences": ["a"], "client_secret": "x"}'
BUNDLED: Final = ("--set", "mongodb.bundled=true,redis.bundled=true,api.auth.allowAnonymous=true")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "MongoDB is required"),
        (("--set", "mongodb.bundled=true"), "Redis is required"),
        (("--set", "mongodb.bundled=true,redis.bundled=true,redis.uri=redis://a"), "redis.bundled brings"),
        (("--set", "mongodb.bundled=true,redis.bundled=true"), "api.auth.allowAnonymous=true"),
        ((*BUNDLED, "--set", "api.auth.methods={basic}"), "api.auth.existingSecret"),
        ((*BUNDLED, "--set", "api.auth.methods={oidc}"), "api.auth.issuers"),
        (
            (*BUNDLED, "--set", "api.auth.methods={oidc}", "--set-json", f"api.auth.issuers=[{SECRET_ISSUER}]"),
            "must not contain secrets",
        ),
        ((*BUNDLED, "--set", "settings.POIESIS_MONGO_URI=mongodb://a:b@c"), "must not be in a ConfigMap"),
        ((*BUNDLED, "--set", "filer.cache.hostPath=/a/b,filer.cache.existingClaim=c"), "not both"),
        ((*BUNDLED, "--set", "filer.cache.subPath=a"), "filer.cache.existingClaim"),
        ((*BUNDLED, "--set", "filer.cache.hostPath=/a/b,tasks.podSecurity=restricted"), "filer.cache.existingClaim"),
        ((*BUNDLED, "--set", "filer.cache.hostPath=/a/b,openshift=true"), "filer.cache.existingClaim"),
        ((*BUNDLED, "--set", "tasks.onDemandAfter=3"), "tasks.onDemandAfter 3 must be less than tasks.maxAttempts (3)"),
    ],
)
def test_invalid_combinations_are_rejected_with_a_message(template: Run, options: tuple[str, ...], words: str):
    done = template(*options)
    assert done.returncode != 0
    assert words in done.stderr


# ── pods ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_container_complies_with_pod_security_restricted(chart: Rendered):
    for component, template in chart.pods():
        pod = template["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, component
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, component
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), component
        assert all("hostPath" not in volume for volume in pod.get("volumes", [])), component
        for container in containers(template):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, component
            assert own["capabilities"] == {"drop": ["ALL"]}, component
            assert own["readOnlyRootFilesystem"] is True, component
            assert not own.get("privileged"), component


def test_users_are_numeric_unless_the_platform_assigns_them(chart: Rendered):
    for component, template in chart.pods():
        context = template["spec"]["securityContext"]
        if chart.given.get("openshift"):
            assert_no_user(component, template)
        else:
            assert context["runAsUser"] > 0, component


def assert_no_user(component: str, template: Json) -> None:
    for context in (template["spec"]["securityContext"], *(c["securityContext"] for c in containers(template))):
        assert not {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"} & set(context), component


def test_on_openshift_no_container_sets_a_user(template: Run):
    """Including bundled servers, Flower and the test pod."""
    values = CHART / "ci" / "bundled-values.yaml"
    done = template("-f", str(values), "--set", "openshift=true,flower.enabled=true")
    assert done.returncode == 0, done.stderr
    made = Rendered("bundled", tuple(o for o in yaml.safe_load_all(done.stdout) if o), {})
    pods = dict(made.pods())
    assert set(pods) == {*OURS, "mongodb", "redis", *TESTS}
    for component, found in pods.items():
        assert_no_user(component, found)


def test_every_container_has_a_memory_request_and_limit(chart: Rendered):
    for component, template in chart.pods():
        for container in containers(template):
            assert container["resources"]["requests"]["memory"], component
            assert container["resources"]["limits"]["memory"], component


def test_a_token_is_mounted_only_with_permissions(chart: Rendered):
    for component, template in chart.pods():
        pod = template["spec"]
        has_rights = component in (*ROLES, "doctor")
        assert pod["automountServiceAccountToken"] is has_rights, component
        assert ("serviceAccountName" in pod) is has_rights, component
    assert all(account["automountServiceAccountToken"] is False for account in chart.of("ServiceAccount"))


def test_no_pod_gets_service_links_which_would_look_like_settings(chart: Rendered):
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in chart.pods())


def test_every_role_has_the_three_probes(chart: Rendered):
    for component, template in chart.pods():
        if component in TESTS:
            continue
        for container in containers(template):
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                check = container[probe].get("httpGet") or container[probe]["tcpSocket"]
                assert check["port"] in ports, (component, probe)


def test_each_role_runs_its_own_command(chart: Rendered):
    found = {component: [c.get("args") for c in containers(template)] for component, template in chart.pods()}
    for component in OURS:
        if component in found:
            assert found[component] == [[component]]


def test_mounts_have_volumes(chart: Rendered):
    for component, template in chart.pods():
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        for container in containers(template):
            mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
            assert set(mounts) <= volumes, component


def test_changed_settings_restart_pods(render: Callable[[str], Rendered], template: Run):
    values = str(CHART / "ci" / "external-values.yaml")
    done = template("-f", values, "--set", "logLevel=DEBUG")
    changed = {o["metadata"]["name"]: o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "Deployment"}
    for item in render("external").of("Deployment"):
        before = item["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        assert (
            changed[item["metadata"]["name"]]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            != before
        )


def test_values_of_a_component_override_those_of_all_pods(render: Callable[[str], Rendered]):
    pods = dict(render("everything").pods())
    assert pods["texam"]["spec"].get("tolerations") is None
    assert pods["torc"]["spec"]["tolerations"][0]["key"] == "pool"
    assert all(pod["spec"]["priorityClassName"] == "services" for pod in pods.values())
    assert all(pod["spec"]["imagePullSecrets"] == [{"name": "registry"}] for pod in pods.values())


# ── selectors, services, budgets ──────────────────────────────────────────────────────────────────────────────────────


def test_every_selector_matches_only_its_own_pods(chart: Rendered):
    found = dict(chart.pods())
    for item in chart.of("Deployment", "StatefulSet", "PodDisruptionBudget", "Service"):
        selector = item["spec"]["selector"]
        selector = selector if "matchLabels" in selector else {"matchLabels": selector}
        component = item["metadata"]["labels"]["app.kubernetes.io/component"]
        assert [c for c, t in found.items() if matches(selector, t["metadata"]["labels"])] == [component]


def test_no_selector_of_the_chart_matches_the_pods_of_tasks(chart: Rendered):
    task = task_labels(chart)
    for item in chart.of("Deployment", "StatefulSet", "PodDisruptionBudget", "Service"):
        selector = item["spec"]["selector"]
        assert not matches(selector if "matchLabels" in selector else {"matchLabels": selector}, task)


def test_every_service_leads_to_a_port_that_exists(chart: Rendered):
    found = dict(chart.pods())
    services = chart.of("Service")
    assert services
    for service in services:
        template = found[service["metadata"]["labels"]["app.kubernetes.io/component"]]
        ports = {port["name"] for container in containers(template) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_ingress_and_route_lead_to_the_api(render: Callable[[str], Rendered]):
    service = render("everything").named("Service", "-api")["metadata"]["name"]
    ingress = render("everything").of("Ingress")[0]["spec"]
    assert ingress["rules"][0]["http"]["paths"][0]["backend"]["service"] == {"name": service, "port": {"name": "http"}}
    assert ingress["tls"]
    route = render("openshift").of("Route")[0]["spec"]
    assert route["to"] == {"kind": "Service", "name": render("openshift").named("Service", "-api")["metadata"]["name"]}
    assert route["port"] == {"targetPort": "http"}


def test_replicas_are_not_set_with_an_autoscaler(chart: Rendered):
    scaled = {o["spec"]["scaleTargetRef"]["name"] for o in chart.of("HorizontalPodAutoscaler")}
    for item in chart.of("Deployment"):
        assert ("replicas" not in item["spec"]) is (item["metadata"]["name"] in scaled)


# ── rights ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_role_has_exactly_the_permissions_of_the_table(chart: Rendered):
    if chart.given.get("rbac", {}).get("create") is False:
        assert not chart.of("Role", "RoleBinding")
        return
    found: dict[str, dict[str, set[str]]] = {}
    for role in chart.of("Role"):
        if role["metadata"]["labels"]["app.kubernetes.io/component"] == "doctor":
            continue
        rights = found.setdefault(role["metadata"]["labels"]["app.kubernetes.io/component"], {})
        for rule in role["rules"]:
            [group] = rule["apiGroups"]
            if "kueue" in group:
                kind, *sub = rule["resources"][0].split("/")
                assert set(rule["verbs"]) == KUEUE_RIGHTS["/".join([f"{kind}.{group}", *sub])]
                continue
            assert rule["apiGroups"] in ([""], ["coordination.k8s.io"])
            for resource in rule["resources"]:
                rights[resource] = set(rule["verbs"])
    assert found == RIGHTS, "any permission that is not in poiesis/cluster/kubernetes/rights.py is too much"


def test_permissions_on_single_objects_refer_to_objects_of_the_chart(chart: Rendered):
    made = {(o["kind"].lower() + "s", o["metadata"].get("namespace"), o["metadata"]["name"]) for o in chart.objects}
    for role in chart.of("Role"):
        for rule in role["rules"]:
            for name in rule.get("resourceNames", []):
                if rule["resources"] == ["namespaces"]:
                    assert name == role["metadata"]["namespace"]
                    continue
                assert (rule["resources"][0], role["metadata"]["namespace"], name) in made


def test_the_doctor_has_rights_during_a_test_only_and_may_not_read_secrets(chart: Rendered):
    made = [o for o in chart.objects if o["metadata"]["labels"]["app.kubernetes.io/component"] == "doctor"]
    assert made
    for item in made:
        annotations = item["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    for role in (o for o in made if o["kind"] == "Role"):
        rights = [(r, v) for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]]
        assert {verb for resource, verb in rights if resource == "secrets"} == {"create"}
        assert not any(verb in ("update", "patch", "*") or resource == "*" for resource, verb in rights)
        for wanted in RIGHTS.values():  # else the trial could not do what the roles do
            for resource in ("pods", "persistentvolumeclaims", "pods/log", "secrets"):
                assert {(resource, verb) for verb in wanted.get(resource, ()) if verb != "watch"} <= set(rights)


def test_the_doctor_asks_about_the_account_of_each_role(chart: Rendered):
    pods = dict(chart.pods())
    [doctor] = pods["doctor"]["spec"]["containers"]
    accounts = {f"--account={role}={NAMESPACE}:{pods[role]['spec']['serviceAccountName']}" for role in ROLES}
    assert accounts == {word for word in doctor["args"] if word.startswith("--account")}
    assert make_parser().parse_args(doctor["args"]).command == "doctor"


def test_permissions_are_bound_in_the_tasks_namespace_to_the_pods_account(chart: Rendered):
    pods = dict(chart.pods())
    namespace = chart.variables()["POIESIS_KUBERNETES__NAMESPACE"]
    roles = {o["metadata"]["name"]: o for o in chart.of("Role")}
    for binding in chart.of("RoleBinding"):
        component = binding["metadata"]["labels"]["app.kubernetes.io/component"]
        role = roles[binding["roleRef"]["name"]]
        assert binding["metadata"]["namespace"] == role["metadata"]["namespace"] == namespace
        account = {
            "kind": "ServiceAccount",
            "name": pods[component]["spec"]["serviceAccountName"],
            "namespace": NAMESPACE,
        }
        assert binding["subjects"] == [account]


def test_the_lease_is_that_of_the_monitor(chart: Rendered):
    from poiesis.cluster.kubernetes.leader import Election

    class Unused:
        def close(self) -> None: ...

    settings = kubernetes_settings(chart)
    election = Election(settings, lambda: None, lambda: None, client=Unused())  # type: ignore[arg-type]
    lease = chart.of("Lease")[0]["metadata"]
    assert (lease["name"], lease["namespace"]) == (election.name, settings.namespace)


# ── settings and secrets ──────────────────────────────────────────────────────────────────────────────────────────────


def environment(chart: Rendered, component: str) -> dict[str, str]:
    """The environment of a container of the chart; variables from files have the file's path."""
    found = dict(chart.variables())
    template = dict(chart.pods())[component]
    for variable in template["spec"]["containers"][0].get("env", []):
        found[variable["name"]] = variable["value"]
    return {name: value for name, value in found.items() if name.startswith("POIESIS_")}


def kubernetes_settings(chart: Rendered) -> KubernetesSettings:
    return read(KubernetesSettings, environment(chart, "torc"), KUBERNETES_PREFIX)


def test_every_variable_of_every_role_is_a_setting(chart: Rendered, tmp_path):
    components = [c for c, _ in chart.pods() if c in OURS]
    assert set(components) >= {"api", *ROLES}
    for component in components:
        found = environment(chart, component)
        for name in [n for n in found if n.endswith(("_URI_FILE",))]:
            (tmp_path / name).write_text(f"scheme://{name}")
            found[name] = str(tmp_path / name)
        settings = read(Settings, found, others=ADAPTER_PREFIXES)
        assert settings.mongo_uri == "scheme://POIESIS_MONGO_URI_FILE"
        assert settings.redis_uri == "scheme://POIESIS_REDIS_URI_FILE"
        read(KubernetesSettings, found, KUBERNETES_PREFIX)
        read(FilerSettings, found, FILER_PREFIX)


# Settings that are not values of the chart. Any of them can be set in `settings`, except those that the chart or the image determines.
NOT_VALUES: Final = {
    "of the embedded service only": (
        "CREDENTIALS METRICS_LISTEN DIRECTORY RUNTIME MAX_PARALLEL MAX_PROCESSES VISIBLE_DIRECTORIES FILER__FILE_HIDDEN"
    ),
    "secrets, which are mounted as files or come from Secrets": "MONGO_URI REDIS_URI LOGS__ACCESS_KEY LOGS__SECRET_KEY FILER__PROXY",
    "set by the service itself": "FILER__CACHE_DIR",
    "part of the image": "KUBERNETES__FILER_COMMAND KUBERNETES__INIT_COMMAND KUBERNETES__LAUNCHERS",
    "for a service outside of the cluster": "KUBERNETES__KUBECONFIG KUBERNETES__CONTEXT",
    "log collectors expect JSON": "LOG_FORMAT",
    "limits on a single request or task that protect the service: there is no reason of a site to change them": (
        "API__MAX_HEADER_BYTES API__MAX_BUFFERED_BYTES API__HEADER_TIMEOUT API__BODY_TIMEOUT API__IDLE_TIMEOUT"
        " API__LIMITS__REDIS_TIMEOUT_MS KUBERNETES__CONTROL_SIZE"
        " POLICY__LIMITS__MAX_EXECUTORS POLICY__LIMITS__MAX_INPUTS POLICY__LIMITS__MAX_OUTPUTS POLICY__LIMITS__MAX_VOLUMES"
        " POLICY__LIMITS__MAX_TAGS POLICY__LIMITS__MAX_CONTENT_BYTES POLICY__LIMITS__MAX_TOTAL_CONTENT_BYTES"
        " POLICY__LIMITS__MAX_COMMAND_BYTES POLICY__LIMITS__MAX_TEXT_BYTES"
    ),
    "timing and buffers, chosen by measurements": (
        "RESYNC SHUTDOWN_GRACE POLICY__RECHECK POLICY__TURN_TIMEOUT"
        " KUBERNETES__CONNECT_TIMEOUT KUBERNETES__READ_TIMEOUT KUBERNETES__ATTEMPTS KUBERNETES__POOL_SIZE KUBERNETES__PAGE_SIZE"
        " KUBERNETES__RECORD_CACHE_BYTES KUBERNETES__RELIST KUBERNETES__WATCH_TIMEOUT KUBERNETES__VOLUME_WAIT"
        " FILER__PART_BYTES FILER__BUFFER_BYTES FILER__CONNECT_TIMEOUT FILER__STALL_TIMEOUT FILER__ATTEMPTS FILER__MAX_RESUMES"
        " FILER__RETRY_DELAY FILER__MAX_RETRY_DELAY FILER__SYNC FILER__MAX_REDIRECTS"
    ),
}


def test_every_setting_is_a_value_or_intentionally_not(render: Callable[[str], Rendered]):
    page = CHART.parents[1] / "docs" / "configuration.md"
    settings = set(re.findall(r"^\| `POIESIS_(\w+)`", page.read_text(), re.MULTILINE))
    found = {
        name.removeprefix("POIESIS_")
        for case in CASES
        for component, _ in render(case).pods()
        for name in environment(render(case), component)
    }
    found |= {name.removesuffix("_FILE") for name in found}
    fields = {"GPU", "ON_DEMAND", "PREEMPTIBLE"}  # placements and quotas: what one of them accepts, all do
    found |= {
        f"KUBERNETES__{kind}__{n.rpartition('__')[2]}" for n in found if "__PREEMPTIBLE__" in n for kind in fields
    }
    quota = {item.name.upper() for item in dataclasses.fields(Quota)}
    found |= {f"ADMISSION__{kind}__{name}" for kind in ("SITE", "USER", "GROUP") for name in quota}
    resources = {f"{kind}_{edge}" for kind in ("CPU", "MEMORY") for edge in ("REQUEST", "LIMIT")}
    found |= {f"KUBERNETES__{kind}_RESOURCES__{name}" for kind in ("FILER", "LOGS") for name in resources}
    reasons = {name for names in NOT_VALUES.values() for name in names.split()}
    assert settings - found - reasons == set(), "add a value to the chart, or a reason to NOT_VALUES"
    assert reasons <= settings, "these settings do not exist any more"
    assert reasons & found <= {"MONGO_URI", "REDIS_URI", "POLICY__RECHECK", "FILER__PARALLEL"}, (
        "these are values of the chart"
    )


def test_quotas_arrive_as_written_and_are_absent_by_default(render):
    def rules(name: str) -> AdmissionRules:
        found = {k: v for k, v in environment(render(name), "api").items() if not k.endswith("_FILE")}
        return read(Settings, found, others=ADAPTER_PREFIXES).admission

    assert rules("everything") == AdmissionRules(
        site=Quota(max_tasks=200, max_cpu_cores=64.5, max_gpus=0),
        user=Quota(max_tasks=20),
        group=Quota(max_tasks=100, weight=2),
        users={"ada": Quota(max_tasks=50, weight=2)},
        groups={"imaging": Quota(max_gpus=4)},
        classes={"urgent": ServiceClass(weight=4, max_tasks=10, groups=("clinic",)), "bulk": ServiceClass()},
        default_class="bulk",
        half_life=timedelta(hours=2),
        aging=timedelta(minutes=30),
        reserve_after=timedelta(minutes=5),
    )
    assert not rules("external").is_enabled


def test_empty_lists_and_labels_mean_none_instead_of_the_default(template: Run):
    values = ("--set-json", "usageTags=[]", "--set", "metrics.dashboards.enabled=true")
    done = template(
        "-f",
        str(CHART / "ci" / "external-values.yaml"),
        *values,
        "--set",
        "metrics.dashboards.labels.grafana_dashboard=null",
    )
    assert done.returncode == 0, done.stderr
    config = {o["metadata"]["name"]: o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "ConfigMap"}
    [settings] = [o["data"] for name, o in config.items() if name.endswith("-config")]
    [boards] = [o for name, o in config.items() if name.endswith("-dashboards")]
    assert read(Settings, {"POIESIS_USAGE_TAGS": settings["POIESIS_USAGE_TAGS"]}).usage_tags == ()
    assert "grafana_dashboard" not in boards["metadata"]["labels"] and boards["data"]


def test_listeners_and_ports_agree(chart: Rendered):
    settings = read(
        Settings,
        {k: v for k, v in environment(chart, "api").items() if not k.endswith("_FILE")},
        others=ADAPTER_PREFIXES,
    )
    for component, template in chart.pods():
        ports = [port["containerPort"] for port in template["spec"]["containers"][0].get("ports", [])]
        if component in ROLES:
            listening = [settings.listen]
            listening += [kubernetes_settings(chart).poke_listen] if component == "monitor" else []
            assert ports == [int(address.rpartition(":")[2]) for address in listening]
        elif component == "api":
            assert ports == [settings.api.port, int(settings.listen.rpartition(":")[2])]


def test_the_values_configure_the_tasks(render: Callable[[str], Rendered]):
    chart = render("everything")
    found = kubernetes_settings(chart)
    assert found.namespace == "tes-tasks"
    assert found.instance == f"{NAMESPACE}.{RELEASE}"
    assert found.image.startswith("registry.example.org/poiesis@sha256:")
    assert found.delivery == "init"
    assert found.pull_secrets == ("registry", "users-registry")
    assert (found.default_cpu_cores, found.default_ram_gb, found.cpu_limit) == (0.5, 2.0, True)
    assert found.preemptible == Placement(
        node_selector={"spot": "true"},
        tolerations=({"key": "spot", "operator": "Exists"},),
        labels={"kind": "spot"},
        annotations={"example.org/a": "b"},
        priority_class="low",
        runtime_class="gvisor",
        cpu_limit=False,
    )
    assert found.node_classes["highmem"] == Placement(
        node_selector={"pool": "highmem"}, tolerations=({"key": "highmem", "operator": "Exists"},)
    )
    assert found.service_classes["urgent"] == Placement(priority_class="high", cpu_limit=True)
    assert found.gpu.runtime_class == "amd"
    assert found.filer_env_secrets == ("s3-credentials",)
    assert found.filer_run_as_user == 0
    assert found.filer_resources.cpu_request == "100m"
    assert found.extra_pod_spec["schedulerName"] == "other"
    assert found.priority_classes == {"low", "high"}


def test_the_values_configure_the_input_cache(render: Callable[[str], Rendered]):
    assert kubernetes_settings(render("everything")).cache_volume == CacheVolume(host_path="/var/cache/poiesis")
    assert kubernetes_settings(render("restricted")).cache_volume == CacheVolume(
        claim="reference-cache", sub_path="poiesis/inputs"
    )
    assert not kubernetes_settings(render("external")).cache_volume.is_set
    found = read(FilerSettings, environment(render("everything"), "tif"), FILER_PREFIX)
    assert (found.cache_bytes, found.cache_min_bytes) == (2 * 10**12, 4096)


def test_the_first_s3_endpoint_stays_the_first(render: Callable[[str], Rendered]):
    found = read(FilerSettings, environment(render("everything"), "tif"), FILER_PREFIX).endpoints
    assert [endpoint.name for endpoint in found] == ["zebra", "attic"]
    assert found[0].buckets == ("results", "genomes-*")
    assert found[0].virtual_style
    assert found[1].anonymous


def test_a_group_assigned_by_the_cluster_is_not_set(render: Callable[[str], Rendered]):
    assert kubernetes_settings(render("openshift")).fs_group is None
    assert kubernetes_settings(render("restricted")).fs_group is None
    assert kubernetes_settings(render("external")).fs_group == 65532


@pytest.mark.parametrize(
    ("given", "user"),
    [
        ([], 65532),
        (["--set", "filer.runAsUser=0"], 0),
        (["--set", "filer.runAsUser=null"], None),
        (["--set", "openshift=true"], None),
        (["--set", "openshift=true,filer.runAsUser=1000"], None),
        (["--set", "openshift=true", "--set-string", "settings.POIESIS_KUBERNETES__FILER_RUN_AS_USER=1000"], 1000),
    ],
)
def test_the_filers_user_is_set_by_the_operator_or_the_platform(template: Run, given: list[str], user: int | None):
    done = template("-f", str(CHART / "ci" / "external-values.yaml"), *given)
    assert done.returncode == 0, done.stderr
    made = Rendered("external", tuple(o for o in yaml.safe_load_all(done.stdout) if o), {})
    assert kubernetes_settings(made).filer_run_as_user == user


def test_no_container_of_a_task_has_a_user_on_openshift(render: Callable[[str], Rendered]):
    settings = kubernetes_settings(render("openshift"))
    inputs, outputs = (Input("/in/a", url="s3://b/a"),), (Output("/out/a", url="s3://b/a"),)
    spec = TaskSpec((Executor("busybox", ("true",)),), inputs=inputs, outputs=outputs)
    task = Task(TaskId("0000000000000000000000000a"), spec, datetime.now(UTC))
    the_plan = plan(task.spec, Policy())
    made = pod(
        task, the_plan, the_plan.pods[0], settings, Policy(), launcher_name="launcher", document_files={"tif.json": 0}
    )
    assert [c["name"] for c in containers(made)] == ["tif", "executor-0", "tof"]
    assert_no_user("task", made)
    assert all(c["securityContext"]["runAsNonRoot"] for c in containers(made))


def test_the_defaults_of_the_chart_are_those_of_the_settings(render: Callable[[str], Rendered]):
    """A value that the chart sets unnecessarily would hide a later default."""
    ours, default = kubernetes_settings(render("external")), KubernetesSettings()
    of_the_release = {"namespace", "instance", "image", "filer_pull_policy", "owner", "poke_address", "poke_listen"}
    different = {f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(default, f.name)}
    assert different <= of_the_release
    filer = read(FilerSettings, environment(render("external"), "tif"), FILER_PREFIX)
    assert filer == FilerSettings()
    variables = {k: v for k, v in environment(render("external"), "api").items() if not k.endswith("_FILE")}
    settings = read(Settings, variables, others=ADAPTER_PREFIXES)
    assert settings.policy == Settings().policy
    assert settings.service == Settings().service
    default_api = Settings().api
    assert settings.api.allow_anonymous  # of the values file: the chart asks for it
    ours_api = dataclasses.replace(settings.api, host=default_api.host, allowed_hosts=(), allow_anonymous=False)
    assert dataclasses.replace(ours_api, audit=default_api.audit) == default_api


def test_the_names_of_the_api_are_allowed_hosts(chart: Rendered):
    variables = {k: v for k, v in environment(chart, "api").items() if not k.endswith("_FILE")}
    allowed = read(Settings, variables, others=ADAPTER_PREFIXES).api.allowed_hosts
    service = next(o["metadata"] for o in chart.of("Service") if o["metadata"]["name"].endswith("-api"))
    name, namespace = service["name"], service["namespace"]
    assert {name, f"{name}.{namespace}", f"{name}.{namespace}.svc"} < set(allowed)
    assert any(host.startswith(f"{name}.{namespace}.svc.") and not host.endswith(".") for host in allowed)
    for rule in [r for o in chart.of("Ingress") for r in o["spec"]["rules"]] + [o["spec"] for o in chart.of("Route")]:
        assert rule["host"] in allowed


def test_connection_strings_are_only_in_secrets(chart: Rendered):
    secret = [s for o in chart.of("Secret") for s in strings(o.get("stringData", {})) if len(s) > 12]
    secret += [base64.b64decode(s).decode() for o in chart.of("Secret") for s in strings(o.get("data", {}))]
    for server in ("mongodb", "redis"):
        if (chart.given.get(server) or {}).get("uri"):
            assert chart.given[server]["uri"] in secret
    for item in chart.objects:
        if item["kind"] == "Secret":
            continue
        for text in strings(item):
            assert not any(word in text for word in secret), (item["kind"], item["metadata"]["name"])
            assert not re.search(r"://[^/\s]*:[^/\s]+@", text), (item["kind"], item["metadata"]["name"])


def test_existing_secrets_are_used_and_no_others_created(chart: Rendered):
    made = {o["metadata"]["name"] for o in chart.of("Secret")}
    for component, template in chart.pods():
        if component not in OURS:
            continue
        volume = next(v for v in template["spec"]["volumes"] if v["name"] == "connections")
        sources = [source["secret"] for source in volume["projected"]["sources"]]
        for server, source in zip(("mongodb", "redis"), sources, strict=True):
            given = chart.given[server].get("existingSecret")
            assert source["name"] == given if given else source["name"] in made
    wanted = sum(not chart.given[server].get("existingSecret") for server in ("mongodb", "redis"))
    assert len(made) == wanted


def test_credentials_of_users_are_only_mounted_in_the_api(render: Callable[[str], Rendered]):
    for component, template in render("everything").pods():
        mounted = [
            v for v in template["spec"].get("volumes", []) if v.get("secret", {}).get("secretName") == "tes-users"
        ]
        assert bool(mounted) is (component in ("api", "doctor"))
    found = environment(render("everything"), "api")
    settings = read(Settings, {k: v for k, v in found.items() if not k.endswith("_URI_FILE")}, others=ADAPTER_PREFIXES)
    assert settings.api.auth == ("basic", "bearer")
    assert settings.api.credentials_file == "/run/secrets/poiesis-credentials/credentials.json"


def test_issuers_are_only_configured_in_the_api(render: Callable[[str], Rendered]):
    chart = render("openshift")
    for component, template in chart.pods():
        names = {v.get("secret", {}).get("secretName") for v in template["spec"].get("volumes", [])}
        assert ("oidc-client" in names) is (component in ("api", "doctor"))
    found = environment(chart, "api")
    settings = read(Settings, {k: v for k, v in found.items() if not k.endswith("_URI_FILE")}, others=ADAPTER_PREFIXES)
    assert (settings.api.auth, settings.api.credentials_file) == (("oidc",), None)
    [issuer] = json.loads(settings.api.oidc_issuers)
    assert issuer["client_secret_file"] == "/run/secrets/poiesis-oidc/client-secret"


def test_an_open_api_is_an_explicit_value(render: Callable[[str], Rendered]):
    assert environment(render("bundled"), "api")["POIESIS_API__ALLOW_ANONYMOUS"] == "true"
    assert environment(render("everything"), "api")["POIESIS_API__ALLOW_ANONYMOUS"] == "false"


def test_the_log_store_is_reached_by_the_roles_that_read_or_delete_logs(render: Callable[[str], Rendered]):
    chart = render("everything")
    for component, template in chart.pods():
        found = set(strings(template))
        assert ({"log-store", "log-store-ca"} <= found) is (component in ("api", "monitor", "doctor")), component
    assert chart.variables()["POIESIS_LOGS__URL"] == "s3://logs/poiesis"
    assert chart.variables()["POIESIS_LOGS__MAX_BYTES"] == "2000000000"
    assert kubernetes_settings(chart).logs_env_secrets == ("log-store",)
    assert kubernetes_settings(chart).logs_file_secrets == {"log-store-ca": "/run/secrets/log-store"}
    assert "10.9.0.0/16" in json.dumps(chart.named("NetworkPolicy", "-tasks"))
    assert not [name for name in render("bundled").variables() if name.startswith("POIESIS_LOGS__")]


def test_storage_credentials_reach_no_pod_of_the_chart(render: Callable[[str], Rendered]):
    for component, template in render("everything").pods():
        assert "s3-credentials" not in set(strings(template)), component


# ── network ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def task_labels(chart: Rendered) -> dict[str, str]:
    """The labels of task pods."""
    return labels.of_task(kubernetes_settings(chart), TaskId("0000000000000000000000000a"), 1, "task")


def peer_matches(peer: Json, namespace: str, own_namespace: str, found: dict[str, str]) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
            return False
    elif namespace != own_namespace:
        return False
    return matches(peer.get("podSelector", {}), found)


def reachable(chart: Rendered, component: str) -> bool:
    """Whether policies on both sides allow task pods to connect to the component (pods, not addresses)."""
    target = dict(chart.pods())[component]["metadata"]["labels"]
    task, task_namespace = task_labels(chart), kubernetes_settings(chart).namespace
    out = chart.named("NetworkPolicy", "-tasks")["spec"]["egress"]
    leaves = any(
        peer_matches(peer, NAMESPACE, task_namespace, target) for rule in out for peer in rule.get("to", []) if rule
    )
    policy = [p for p in chart.of("NetworkPolicy") if p["metadata"]["name"].endswith(f"-{component}")]
    enters = not policy or any(
        peer_matches(peer, task_namespace, NAMESPACE, task)
        for rule in policy[0]["spec"]["ingress"] or []
        for peer in rule.get("from", [])
    )
    return leaves and enters


def test_task_pods_are_selected_by_their_policy(chart: Rendered):
    policy = chart.named("NetworkPolicy", "-tasks")
    assert policy["metadata"]["namespace"] == kubernetes_settings(chart).namespace
    assert matches(policy["spec"]["podSelector"], task_labels(chart))
    assert all(not matches(policy["spec"]["podSelector"], t["metadata"]["labels"]) for _, t in chart.pods())
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []


def test_task_pods_reach_the_monitor_and_nothing_else_of_the_release(chart: Rendered):
    pokes = chart.variables().get("POIESIS_KUBERNETES__POKE_ADDRESS")
    for component, _ in chart.pods():
        assert reachable(chart, component) is (component == "monitor" and pokes is not None), component
    if pokes:
        host, _, port = pokes.rpartition(":")
        service = chart.named("Service", "-monitor")
        assert host == f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local."
        assert service["spec"]["ports"] == [{"name": "poke", "port": int(port), "targetPort": "poke"}]


def test_pokes_are_the_only_port_of_the_service_that_task_pods_reach(render: Callable[[str], Rendered]):
    """Not the one for health checks, which a task must not be able to disturb."""
    chart = render("external")
    monitor = dict(chart.pods())["monitor"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in monitor["ports"]}
    assert ports["poke"] != ports["health"]
    assert [
        probe for name, probe in monitor.items() if name.endswith("Probe") and probe["httpGet"]["port"] != "health"
    ] == []
    out = [rule for rule in chart.named("NetworkPolicy", "-tasks")["spec"]["egress"] if "podSelector" in str(rule)]
    assert [rule["ports"] for rule in out] == [[{"protocol": "TCP", "port": ports["poke"]}]]
    entered = chart.named("NetworkPolicy", "-monitor")["spec"]["ingress"]
    assert [rule["ports"] for rule in entered] == [[{"protocol": "TCP", "port": "poke"}]]
    assert chart.variables()["POIESIS_KUBERNETES__POKE_LISTEN"] == f"0.0.0.0:{ports['poke']}"
    assert chart.variables()["POIESIS_LISTEN"] == f"0.0.0.0:{ports['health']}"


def test_task_pods_may_query_dns(chart: Rendered):
    first = chart.named("NetworkPolicy", "-tasks")["spec"]["egress"][0]
    ports = {53, 5353} if chart.given.get("openshift") else {53}  # of the servers' pods, behind their Service
    assert {(p["protocol"], p["port"]) for p in first["ports"]} == {(t, p) for t in ("UDP", "TCP") for p in ports}


def test_the_tests_of_a_release_may_call_its_api(render: Callable[[str], Rendered]):
    policy = render("everything").named("NetworkPolicy", "-api")["spec"]
    peers = policy["ingress"][0]["from"]
    for component in ("test", "doctor"):
        own = {**policy["podSelector"]["matchLabels"], "app.kubernetes.io/component": component}
        assert any(peer_matches(p, NAMESPACE, NAMESPACE, own) for p in peers), component


def test_unready_pods_block_no_drain(chart: Rendered):
    budgets = chart.of("PodDisruptionBudget")
    assert all(b["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for b in budgets)


def test_private_networks_are_excluded_from_the_internet(render: Callable[[str], Rendered]):
    def blocks(case: str) -> dict[str, list[str]]:
        rules = render(case).named("NetworkPolicy", "-tasks")["spec"]["egress"]
        return {p["ipBlock"]["cidr"]: p["ipBlock"]["except"] for r in rules for p in r.get("to", []) if "ipBlock" in p}

    assert set(blocks("external")) == {"0.0.0.0/0", "::/0"}
    assert set(blocks("external")["0.0.0.0/0"]) >= {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"}
    assert set(blocks("external")["::/0"]) >= {"fc00::/7", "fe80::/10", "64:ff9b::/96", "64:ff9b:1::/48"}
    assert blocks("restricted") == {}


def test_every_rule_for_task_pods_has_a_destination_except_dns(chart: Rendered):
    for rule in chart.named("NetworkPolicy", "-tasks")["spec"]["egress"]:
        assert rule.get("to") or {port["port"] for port in rule["ports"]} <= {53, 5353}


def test_bundled_servers_accept_only_the_roles_and_connect_nowhere(render: Callable[[str], Rendered]):
    chart = render("bundled")
    for server in ("mongodb", "redis"):
        spec = chart.named("NetworkPolicy", f"-{server}")["spec"]
        assert spec["egress"] == []
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        peers = [peer for rule in spec["ingress"] for peer in rule["from"]]
        for component, template in chart.pods():
            entered = any(peer_matches(p, NAMESPACE, NAMESPACE, template["metadata"]["labels"]) for p in peers)
            assert entered is (component in (*OURS, "doctor")), (server, component)


def test_roles_accept_only_the_allowed_connections(render: Callable[[str], Rendered]):
    for component in ("torc", "tif", "texam", "tof"):
        assert render("external").named("NetworkPolicy", f"-{component}")["spec"]["ingress"] == []
    opened = render("everything").named("NetworkPolicy", "-torc")["spec"]["ingress"]
    assert [rule["ports"] for rule in opened] == [[{"protocol": "TCP", "port": "health"}]]


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ((), ["--bind_ip_all", "--wiredTigerCacheSizeGB", "0.25"]),
        (("--set", "listenHost=::"), ["--bind_ip_all", "--wiredTigerCacheSizeGB", "0.25", "--ipv6"]),
        (("--set", "listenHost=::,mongodb.args={--bind_ip_all,--ipv6}"), ["--bind_ip_all", "--ipv6"]),
        (("--set", "listenHost=::,mongodb.args={--other}"), ["--other"]),
        (("--set", "listenHost=::,mongodb.args=null"), None),
    ],
)
def test_the_bundled_mongodb_listens_on_ipv6_where_the_roles_do(
    template: Run, options: tuple[str, ...], args: list[str] | None
):
    done = template("-f", str(CHART / "ci" / "bundled-values.yaml"), *options)
    assert done.returncode == 0, done.stderr
    [server] = [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == "StatefulSet"]
    assert server["spec"]["template"]["spec"]["containers"][0].get("args") == args


def test_uninstalling_deletes_the_bundled_volume_unless_it_is_kept(template: Run):
    values = str(CHART / "ci" / "bundled-values.yaml")

    def claim(*options: str) -> Json:
        found = [o for o in yaml.safe_load_all(template("-f", values, *options).stdout) if o]
        assert not any("volumeClaimTemplates" in o.get("spec", {}) for o in found)  # Helm would leave those
        claims: list[Json] = [o for o in found if o["kind"] == "PersistentVolumeClaim"]
        return claims[0]["metadata"].get("annotations", {})

    assert claim() == {}
    assert claim("--set", "mongodb.persistence.keep=true") == {"helm.sh/resource-policy": "keep"}


def test_the_image_is_built_from_the_python_that_the_package_needs():
    build = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())
    assert build["build-system"]["requires"]
    dockerfile = (CHART.parents[1] / "docker" / "Dockerfile").read_text()
    assert "USER 65532:65532" in dockerfile
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["pods"]["podSecurityContext"]["runAsUser"] == 65532
    assert "--require-hashes" in dockerfile
