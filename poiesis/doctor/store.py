"""Checks of the task store: MongoDB, or the SQLite file of the embedded mode."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from poiesis.doctor.clock import check_skew, skew_s
from poiesis.doctor.result import NOT_TRIED, Finding, Findings, error, ok, warning
from poiesis.doctor.site import Site, host_of
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.stores import mongo_stores

LEAST_VERSION: Final = (6, 0)
TRIAL_PREFIX: Final = "doctor_"  # of collections: doctor_SECONDS_RANDOM
TRIAL_AGE_S: Final = 3600.0  # after which a trial was left behind by a run that was killed
LAG: Final = timedelta(minutes=1)  # of the log of events; the notifier appends several times a second
FULL: Final = 0.9  # of the file system
AUTHENTICATION_FAILED, UNAUTHORIZED, NOT_PRIMARY = 18, 13, 10107
SECRET: Final = "the Secret of mongodb.existingSecret (POIESIS_MONGO_URI)"


@contextmanager
def opened(site: Site) -> Iterator[MongoDatabase]:
    timeout = timedelta(seconds=5)
    database = MongoDatabase(site.settings.mongo_uri, site.settings.mongo_database, timeout=timeout)
    try:
        yield database
    finally:
        database.close()


def check_store(site: Site) -> Findings:
    """Reachable, the right credentials, a version that is supported, and a clock like ours."""
    with opened(site) as database:
        try:
            before = time.time()
            hello = database.client.admin.command("hello")
            yield from _clock(hello, before)
            database.client[site.settings.mongo_database]["tasks"].find_one({}, {"_id": 1})
            version = database.client.server_info()
        except PyMongoError as failure:
            yield explained(failure, site)
            return
    numbers = tuple(version.get("versionArray", ())[:2])
    if numbers and numbers < LEAST_VERSION:
        yield warning(
            f"MongoDB {version.get('version')} is older than {'.'.join(map(str, LEAST_VERSION))}",
            "Poiesis is not tested with it.",
            "Upgrade the server.",
        )
    yield ok(f"MongoDB {version.get('version')} at {_place(site)}, database {site.settings.mongo_database}")


def check_store_rights(site: Site) -> Findings:
    """Create, read, change and delete, in a collection of its own."""
    if not site.trial:
        yield NOT_TRIED
        return
    with opened(site) as database:
        db = database.client[site.settings.mongo_database]
        name = f"{TRIAL_PREFIX}{int(time.time())}_{secrets.token_hex(4)}"
        step = "create a collection and a document"
        try:
            _remove_old(db)
            db[name].insert_one({"_id": "trial", "n": 0})
            step = "create an index"
            db[name].create_index("n", name="n")
            step = "change a document"
            db[name].update_one({"_id": "trial", "n": 0}, {"$set": {"n": 1}})
            step = "delete a document"
            db[name].delete_one({"_id": "trial"})
        except PyMongoError as failure:
            if isinstance(failure, OperationFailure) and failure.code == UNAUTHORIZED:
                yield error(
                    f"the user of the connection string has no right to {step} in the database {db.name}",
                    "Tasks cannot be stored.",
                    f'Grant it: db.grantRolesToUser("USER", [{{role: "readWrite", db: "{db.name}"}}]).',
                )
            else:
                yield explained(failure, site)
            return
        finally:
            _drop(db, name)
    yield ok("collections, documents and indexes can be created, changed and deleted")


def _remove_old(db: Any) -> None:
    for name in db.list_collection_names(filter={"name": {"$regex": f"^{TRIAL_PREFIX}"}}):
        made = name.split("_")[1] if name.count("_") == 2 else ""
        if made.isdecimal() and time.time() - int(made) > TRIAL_AGE_S:
            _drop(db, name)


def _drop(db: Any, name: str) -> None:
    try:
        db.drop_collection(name)
    except PyMongoError:
        return  # the next run removes it


def check_indexes(site: Site) -> Findings:
    with opened(site) as database:
        try:
            mongo_stores(database)  # declares the indexes
            missing = database.missing_indexes()
        except PyMongoError as failure:
            yield explained(failure, site)
            return
    for collection, names in missing.items():
        yield warning(
            f"missing indexes of the collection {collection}: {', '.join(names)}",
            "Queries read the whole collection, which becomes slow with many tasks.",
            "Every process creates them at its start: look for errors of createIndexes in the logs of the roles, and check the "
            "right to create indexes.",
        )
    if not missing:
        yield ok("all indexes exist, or will be created with the first task")


def check_notifier(site: Site) -> Findings:
    """The notifier appends changes of tasks to the log of events: the oldest that it has not appended shows its lag."""
    with opened(site) as database:
        tasks = database.client[site.settings.mongo_database]["tasks"]
        try:
            found = tasks.find_one({"outbox": {"$gt": ""}}, {"outbox": 1}, sort=[("outbox", 1)])
        except PyMongoError as failure:
            yield explained(failure, site)
            return
    since = _moment(found["outbox"]) if found else None
    lag = datetime.now(UTC) - since if since else timedelta(0)
    if lag > LAG:
        yield error(
            f"changes of tasks have waited for the notifier for {round(lag.total_seconds())} s",
            "Clients that follow events see nothing, webhooks are not sent, and usage is not counted.",
            "Start the notifier (`kubectl get deployment -l app.kubernetes.io/component=notifier`), and look into its logs.",
        )
    else:
        yield ok("no change of a task waits for the log of events")


def _moment(mark: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(mark.split(" ")[0])
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _clock(hello: Any, before: float) -> Findings:
    theirs = hello.get("localTime")
    if not isinstance(theirs, datetime):
        return
    skew = skew_s(theirs.replace(tzinfo=UTC).timestamp(), before)
    yield from check_skew("the store", skew, "Times in tasks are wrong, and deadlines come early or late.")


def explained(failure: PyMongoError, site: Site) -> Finding:
    """The finding for an error of the driver."""
    place = _place(site)
    code = failure.code if isinstance(failure, OperationFailure) else None
    if code == AUTHENTICATION_FAILED or "Authentication failed" in str(failure):
        return error(
            f"MongoDB at {place} refuses the user name or password",
            "No task can be stored or read; no role becomes ready.",
            f"Correct {SECRET}; a user of another database needs ?authSource=DATABASE.",
        )
    if code == UNAUTHORIZED:
        return error(
            f"MongoDB at {place} requires a user with rights in the database {site.settings.mongo_database}",
            "No task can be stored or read.",
            f"Put user and password into {SECRET}, and grant the user readWrite.",
        )
    reason = str(failure).split(", Timeout:")[0].split(" (configured timeouts")[0][:300]
    if isinstance(failure, ServerSelectionTimeoutError):
        return error(
            f"MongoDB at {place} does not respond: {reason}",
            "No task can be stored or read; no role becomes ready.",
            "Check the address, that the server runs, that a NetworkPolicy or firewall lets the roles connect, and tls=true if "
            "it expects TLS.",
        )
    return error(
        f"MongoDB at {place}: {type(failure).__name__}: {reason}", "Tasks cannot be stored.", "Check the server."
    )


def _place(site: Site) -> str:
    host, port = host_of(site.settings.mongo_uri)
    return f"{host}:{port}" if port else host


def check_database_file(site: Site) -> Findings:
    """The SQLite file of the embedded mode, without writing to it."""
    path = Path(site.settings.directory) / "tasks.sqlite"
    if not path.exists():
        yield ok(f"{path} will be created by `poiesis up`")
        return
    try:
        database = sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True, timeout=5)
        try:
            count = database.execute("SELECT count(*) FROM tasks").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error as failure:
        yield error(
            f"{path} cannot be read: {failure}",
            "`poiesis up` does not start on this directory.",
            "Restore the file from a backup, or choose another directory with --dir.",
        )
        return
    yield ok(f"{path}: {count} tasks")
