"""Which checks a site gets. Each is imported only if it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from poiesis.config import PREFIX
from poiesis.doctor import settings
from poiesis.doctor.result import NOT_TRIED, Check, Findings, skipped
from poiesis.doctor.site import Site

WORKERS = ("torc", "tif", "texam", "tof", "monitor")


def checks_for(site: Site) -> list[Check]:
    made = [*_of_settings(site), *(_of_cluster(site) if site.mode == "kubernetes" else _of_machine(site))]
    if site.mode == "kubernetes" and (site.role is None or site.role in WORKERS):
        made += _of_kubernetes(site)
    made += [*_of_identity(site), *_of_storage(site), *_of_service(site)]
    return made


def _of_settings(site: Site) -> Iterator[Check]:
    yield Check("settings", "Configuration", partial(settings.check_settings, site))
    yield Check("files", "Configuration", partial(settings.check_files, site))
    if site.is_for("api"):
        yield Check("authentication", "Configuration", partial(settings.check_authentication, site))


def _of_cluster(site: Site) -> Iterator[Check]:
    from poiesis.doctor import broker, store

    if site.is_invalid(f"{PREFIX}MONGO"):
        yield _blocked("store", "Store")
    else:
        yield Check("store", "Store", partial(store.check_store, site))
        yield Check("store-rights", "Store", partial(store.check_store_rights, site), "store")
        yield Check("indexes", "Store", partial(store.check_indexes, site), "store")
        yield Check("notifier", "Store", partial(store.check_notifier, site), "store")
    if site.role == "notifier":
        return  # it needs no broker
    if site.is_invalid(f"{PREFIX}REDIS"):
        yield _blocked("redis", "Broker")
    else:
        yield Check("redis", "Broker", partial(broker.check_broker, site))
        if site.role is None or site.is_for("torc", "tif", "texam", "tof"):
            yield Check("workers", "Broker", partial(broker.check_workers, site), "redis")


def _of_kubernetes(site: Site) -> Iterator[Check]:
    group = "Kubernetes"
    if site.is_invalid(f"{PREFIX}KUBERNETES") or site.is_invalid(f"{PREFIX}POLICY"):
        yield _blocked("api-server", group)
        return
    from poiesis.doctor import kubernetes as cluster

    api, first = cluster.Api(site), "api-server"

    def check(name: str, what: str, run: Callable[[cluster.Api], Findings]) -> Check:
        return Check(name, group, lambda: cluster.guarded(what, partial(run, api)), first)

    yield Check(first, group, partial(cluster.check_api_server, api))
    accounts = {site.role: None} if site.role else site.accounts
    for role, account in accounts.items():
        yield check(f"rights-{role}", "rights", partial(cluster.check_rights, role=role, account=account))
    if "monitor" in accounts and site.kubernetes.read_nodes:
        yield check("rights-nodes", "rights", partial(cluster.check_node_rights, account=accounts["monitor"]))
    if site.is_for("monitor"):
        yield check("monitor", "the Lease", cluster.check_monitor)
    if site.role is not None:
        return
    yield check("namespace", "the namespace", cluster.check_namespace)
    yield check("quotas", "ResourceQuotas", cluster.check_quotas)
    yield check("admission", "what is admitted", cluster.check_admission)
    yield check("storage-class", "StorageClasses", cluster.check_storage_class)
    yield check("objects", "the objects that the settings name", cluster.check_objects)
    yield check("network-policy", "NetworkPolicies", cluster.check_network_policy)
    if not site.trial:
        yield Check("trial", "Trial pod", lambda: iter([NOT_TRIED]))
        return
    from poiesis.doctor import trial

    yield Check("trial", "Trial pod", partial(trial.check_trial, api), first, trial.DEADLINE_S)


def _of_machine(site: Site) -> Iterator[Check]:
    from poiesis.doctor import machine, store

    group = "This machine"
    yield Check("directory", group, partial(machine.check_directory, site))
    yield Check("database", group, partial(store.check_database_file, site), "directory")
    yield Check("runtime", group, partial(machine.check_runtime, site), "directory", deadline_s=60)
    yield Check("user-namespaces", group, partial(machine.check_user_namespaces, site))
    yield Check("cgroups", group, partial(machine.check_cgroups, site))
    yield Check("port", group, partial(machine.check_port, site))
    yield Check("limits", group, partial(machine.check_limits, site))


def _of_identity(site: Site) -> Iterator[Check]:
    if not site.is_for("api") or "oidc" not in site.settings.api.auth:
        return
    from poiesis.doctor import identity

    yield Check("oidc", "Identity", partial(identity.check_issuers, site))
    for issuer in identity.issuers_of(site):
        yield Check(f"oidc-{issuer.name}", "Identity", partial(identity.check_issuer, issuer), "oidc")


def _of_storage(site: Site) -> Iterator[Check]:
    from poiesis.doctor import storage

    group = "Storage"
    if site.mode == "machine":  # in a cluster only filer containers have the credentials: `trial`
        if site.is_invalid(f"{PREFIX}FILER"):
            yield _blocked("s3", group)
        else:
            for endpoint in storage.endpoints_to_check(site.filer):
                yield Check(f"s3-{endpoint.name}", group, partial(storage.check_endpoint, endpoint, site.filer))
    if site.settings.logs.url is not None and site.is_for("api", "monitor"):
        yield Check("log-store", group, partial(_log_store, site))


def _log_store(site: Site) -> Findings:
    from poiesis.doctor import storage

    if not site.trial:
        yield NOT_TRIED
        return
    yield from storage.check_log_store(site.settings.logs)


def _of_service(site: Site) -> Iterator[Check]:
    if site.url is not None and site.is_for("api"):
        from poiesis.doctor import service

        yield Check("api", "Service", partial(service.check_api, site.url))


def _blocked(name: str, group: str) -> Check:
    return Check(name, group, lambda: iter([skipped("not checked: its settings are invalid")]))
