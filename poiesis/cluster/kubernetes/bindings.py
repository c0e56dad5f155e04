"""The settings of one task: those of the site, with the credentials that its user or group is bound to in place of the shared ones.

Secrets are only named: the kubelet mounts them, so the service needs no right to read them. A Secret that does not exist would keep a pod
waiting with nothing but an event to say why; so its volume is optional, and the filer reports that it is empty.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from typing import Final

from poiesis.cluster.kubernetes.settings import Binding, KubernetesSettings
from poiesis.domain.bindings import binding_of
from poiesis.domain.task import Task

CREDENTIALS: Final = "/poiesis/credentials"
"""Mount point of a binding's Secret in filer containers."""


def settings_of(task: Task, settings: KubernetesSettings) -> KubernetesSettings:
    """What the task's pods are built from."""
    if settings.pull_policy is None and any(b.pull_secrets for b in settings.bindings.values()):
        settings = replace(settings, pull_policy="Always")
    binding = _binding(task, settings)
    if binding is None:
        return settings
    if binding.pull_secrets is not None:
        pull_secrets = tuple(dict.fromkeys((*settings.image_pull_secrets, *binding.pull_secrets)))
        settings = replace(settings, pull_secrets=pull_secrets)
    if binding.secret is not None:
        kept = {name: path for name, path in settings.filer_file_secrets.items() if name in settings.bound_file_secrets}
        own = {binding.secret: CREDENTIALS} if binding.secret else {}
        settings = replace(settings, filer_env_secrets=(), filer_file_secrets={**kept, **own})
    return settings


def filer_settings_of(task: Task, settings: KubernetesSettings, text: str) -> str:
    """The filers' settings as JSON, with the place of the task's own credentials."""
    binding = _binding(task, settings)
    if binding is None or binding.secret is None:
        return text
    own = {
        "credentials_dir": CREDENTIALS if binding.secret else os.devnull,
        "credentials_name": f"the Secret {binding.secret!r} in the namespace of tasks" if binding.secret else "",
        "cache_scope": hashlib.sha256(f"Secret {binding.secret}".encode()).hexdigest()[:32],
    }
    return json.dumps({**json.loads(text), **own})


def _binding(task: Task, settings: KubernetesSettings) -> Binding | None:
    return binding_of(settings.bindings, task.owner, task.groups)
