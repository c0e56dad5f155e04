"""Azure Blob Storage: Azurite, from npm or PATH."""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
import urllib3

from tests.servers.emulators import program
from tests.servers.process import HOST, running

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's documented key
VERSION = "2021-08-06"  # of the protocol


@dataclass(frozen=True)
class AzureServer:
    endpoint: str
    """With the account, as Azurite requires."""
    container: str
    account: str = ACCOUNT
    key: str = KEY

    def put(self, name: str, data: bytes) -> None:
        headers = {"x-ms-blob-type": "BlockBlob", "content-type": "application/octet-stream"}
        self.request("PUT", f"/{self.container}/{quote(name)}", data, headers)

    def names(self) -> set[str]:
        found = self.request("GET", f"/{self.container}?comp=list&restype=container")
        return {str(name.text) for name in ElementTree.fromstring(found).iter("Name")}

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """`path`: with its query, if any. Signed with the shared key."""
        sent = {**(headers or {}), "x-ms-version": VERSION}
        sent["x-ms-date"] = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        plain, _, query = path.partition("?")
        canonical = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent) if name.startswith("x-ms-"))
        resource = f"/{self.account}/{self.account}{plain}"
        resource += "".join("\n" + item.replace("=", ":") for item in sorted(query.split("&")) if item)
        length, kind = str(len(body)) if body else "", sent.get("content-type", "")
        text = f"{method}\n\n\n{length}\n\n{kind}\n\n\n\n\n\n\n{canonical}{resource}"
        digest = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()
        sent["authorization"] = f"SharedKey {self.account}:{base64.b64encode(digest).decode()}"
        with urllib3.PoolManager(timeout=30, retries=False) as pool:
            answer = pool.request(method, self.endpoint + path, body=body, headers=sent)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:300]!r}")
        return answer.data


def _ready(ports: list[int]) -> AzureServer:
    server = AzureServer(f"http://{HOST}:{ports[0]}/{ACCOUNT}", "ready")
    server.request("PUT", "/ready?restype=container")
    return server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[AzureServer]:
    """A server that all tests of this worker share; tests use `azure`, with their own container."""
    azurite = program("azurite-blob")

    def command(_: Path, ports: list[int]) -> list[str]:
        port = ["--blobHost", HOST, "--blobPort", str(ports[0])]
        quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
        return [azurite, *port, *quiet]

    with running("azure", 1, command, _ready) as server:
        yield server


@pytest.fixture
def azure(azure_server: AzureServer) -> AzureServer:
    """Endpoint, account, key and an empty container for this test only."""
    server = replace(azure_server, container=f"test-{uuid.uuid4().hex[:12]}")
    server.request("PUT", f"/{server.container}?restype=container")
    return server
