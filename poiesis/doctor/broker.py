"""Checks of Redis and of the workers behind it."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from poiesis.doctor.clock import check_skew, skew_s
from poiesis.doctor.result import Finding, Findings, error, ok, skipped, warning
from poiesis.doctor.site import Site, host_of
from poiesis.domain.states import Role

LEAST_VERSION: Final = (6, 0)
TIMEOUT_S: Final = 4.0
FULL: Final = 0.9
TRIAL_TTL_S: Final = 60  # of the trial's keys, which a killed run leaves behind
PING_S: Final = 2.0  # how long workers may take to answer
SECRET: Final = "the Secret of redis.existingSecret (POIESIS_REDIS_URI)"
NO_TASKS: Final = "Links are not delivered: new tasks stay QUEUED."


def _client(site: Site) -> Redis:
    """Raises: ValueError for an invalid URI."""
    return Redis.from_url(site.settings.redis_uri, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)


def check_broker(site: Site) -> Findings:
    try:
        client = _client(site)
    except ValueError:  # its message may have the password
        yield error(
            "POIESIS_REDIS_URI is not a valid URI",
            NO_TASKS,
            "Use redis://:PASSWORD@HOST:6379/0, or rediss:// with TLS.",
        )
        return
    with client:
        try:
            before = time.time()
            seconds, micros = client.time()
            skew = skew_s(seconds + micros / 1e6, before)
            info: Any = client.info()
            yield from _state(info)
            if site.trial:
                _try_out(client)
        except RedisError as failure:
            yield explained(failure, site)
            return
    yield from check_skew("Redis", skew, "Messages whose worker died are redelivered early or late.")
    persistence = (
        "append-only file" if info.get("aof_enabled") else "no append-only file: lost messages are published again"
    )
    yield ok(f"Redis {info.get('redis_version')} at {_place(site)} ({persistence})")


def _state(info: Any) -> Findings:
    numbers = tuple(int(n) for n in str(info.get("redis_version", "")).split(".")[:2] if n.isdecimal())
    if len(numbers) == 2 and numbers < LEAST_VERSION:
        yield warning(
            f"Redis {info['redis_version']} is older than {'.'.join(map(str, LEAST_VERSION))}",
            "Poiesis is not tested with it.",
            "Upgrade the server.",
        )
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory", 0)
    if limit and policy != "noeviction":
        yield warning(
            f"maxmemory-policy is {policy}",
            "Under memory pressure Redis deletes queues and messages; tasks are delayed until resync publishes them again.",
            "Set maxmemory-policy noeviction in the server's configuration.",
        )
    if limit and info.get("used_memory", 0) > FULL * limit:
        yield warning(
            f"{info['used_memory'] * 100 // limit} % of maxmemory is used",
            "When it is full, messages are refused (noeviction) or deleted.",
            "Raise maxmemory, or find out which other service fills this Redis.",
        )
    if info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err":
        yield error(
            "Redis cannot save its data to disk",
            "By default (stop-writes-on-bgsave-error) it then refuses all messages: new tasks stay QUEUED.",
            "Free space on its disk, or repair the permissions of its directory; see the server's log.",
        )


def _try_out(client: Redis) -> None:
    """The kinds of commands that Celery uses. Raises: RedisError."""
    name = f"poiesis:doctor:{secrets.token_hex(8)}"
    try:
        client.lpush(name, "trial")
        client.expire(name, TRIAL_TTL_S)
        client.brpop([name], timeout=1)
        client.zadd(name, {"trial": 1})
        client.expire(name, TRIAL_TTL_S)
    finally:
        client.delete(name)


def explained(failure: RedisError, site: Site) -> Finding:
    place, text = _place(site), str(failure)[:200]
    if isinstance(failure, NoPermissionError):
        return error(
            f"the user of Redis at {place} has too few rights: {text}",
            NO_TASKS,
            "Give the user all commands on all keys and channels of its database: ACL SETUSER NAME ~* &* +@all -@dangerous +info.",
        )
    if isinstance(failure, AuthenticationError) or "NOAUTH" in text or "WRONGPASS" in text:
        has_password = urlsplit(site.settings.redis_uri).password is not None
        what = "refuses the user name or password" if has_password else "requires a password"
        return error(f"Redis at {place} {what}", NO_TASKS, f"Correct {SECRET}: redis://USER:PASSWORD@HOST:PORT/0.")
    if isinstance(failure, ReadOnlyError):
        return error(f"Redis at {place} is a read-only replica", NO_TASKS, f"Put the primary's address into {SECRET}.")
    if isinstance(failure, RedisConnectionError | RedisTimeoutError):
        return error(
            f"Redis at {place} does not respond: {text}",
            NO_TASKS,
            "Check the address, that the server runs, that a NetworkPolicy or firewall lets the roles connect, and rediss:// if "
            "it expects TLS.",
        )
    repair = "Check the server." if isinstance(failure, ResponseError) else "Check the URI and the server."
    return error(f"Redis at {place}: {type(failure).__name__}: {text}", NO_TASKS, repair)


def check_workers(site: Site) -> Findings:
    """Whether a worker of each role answers: by Celery's remote control."""
    from poiesis.queue.app import make_app

    app = make_app(site.settings.redis_uri)
    try:
        answers: Any = app.control.inspect(timeout=PING_S).ping() or {}
    finally:
        app.close()
    running = {name.partition("@")[0] for name in answers}
    wanted = {role.value for role in Role if site.is_for(role.value)}
    missing = sorted(wanted - running)
    if not running:
        yield skipped("no worker answers: the service is not running", "Check again once it has been started.")
    elif missing:
        yield error(
            f"no worker answers of: {', '.join(missing)}",
            "Tasks stop at the stages of these roles.",
            "Look at their pods: kubectl get pods -l 'app.kubernetes.io/component in (" + ", ".join(missing) + ")'.",
        )
    else:
        yield ok(f"a worker of each role answers ({len(answers)} in total)")


def _place(site: Site) -> str:
    host, port = host_of(site.settings.redis_uri)
    return f"{host}:{port or 6379}"
