"""Inputs and outputs in S3, through the whole service, with a real S3 server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from tests.integration.embedded.service import Service, logs_of, request, sh, system_log
from tests.servers.s3 import S3Server


def settings(s3: S3Server) -> dict[str, str]:
    endpoint = {"url": s3.endpoint, "region": s3.region, "access_key": s3.access_key, "secret_key": s3.secret_key}
    return {"POIESIS_FILER__S3": json.dumps({"lab": endpoint})}


def put(s3: S3Server, key: str, content: bytes) -> None:
    s3.client().put_object(s3.bucket, key, io.BytesIO(content), len(content))


def objects(s3: S3Server) -> dict[str, bytes]:
    client = s3.client()
    found = {}
    for item in client.list_objects(s3.bucket, recursive=True):
        with client.get_object(s3.bucket, str(item.object_name)) as answer:
            found[str(item.object_name)] = answer.read()
    return found


def test_objects_are_staged_and_uploaded(make_service: Callable[..., Service], s3: S3Server) -> None:
    put(s3, "in/one.txt", b"one\n")
    put(s3, "in/deep/two with ü.txt", b"two\n")
    large = bytes(range(256)) * 4096 * 20  # 20 MiB: more than a part
    put(s3, "large", large)
    service = make_service(**settings(s3)).start()
    url = f"s3://{s3.bucket}"
    task = service.run(
        sh(
            "cat /data/one /data/dir/one.txt '/data/dir/deep/two with ü.txt'; mkdir /out; cp -r /data/dir/. /out; cp /data/large /copy"
        ),
        inputs=[
            {"path": "/data/one", "url": f"{url}/in/one.txt"},
            {"path": "/data/dir", "url": f"{url}/in/", "type": "DIRECTORY"},
            {"path": "/data/large", "url": f"{url}/large"},
        ],
        volumes=["/out"],
        outputs=[
            {"path": "/out", "url": f"{url}/out", "type": "DIRECTORY"},
            {"path": "/out/*.txt", "path_prefix": "/out", "url": f"{url}/flat"},
            {"path": "/copy", "url": f"{url}/copy"},
        ],
    )
    assert task["state"] == "COMPLETE", task["logs"]
    assert logs_of(task)[0]["stdout"] == "one\none\ntwo\n"
    found = objects(s3)
    assert found.pop("copy") == found.pop("large") == large
    assert found == {
        "in/one.txt": b"one\n",
        "in/deep/two with ü.txt": b"two\n",
        "out/one.txt": b"one\n",
        "out/deep/two with ü.txt": b"two\n",
        "flat/one.txt": b"one\n",
    }
    sizes = {o["url"]: o["size_bytes"] for o in task["logs"][0]["outputs"]}
    assert sizes[f"{url}/copy"] == str(len(large))
    assert s3.secret_key not in json.dumps(task)

    missing = service.run(sh("true"), inputs=[{"path": "/in", "url": f"{url}/nothing"}])
    assert missing["state"] == "SYSTEM_ERROR" and "nothing" in system_log(missing) and logs_of(missing) == []
    assert s3.secret_key not in json.dumps(missing)
    assert "s3://" in "".join(request("GET", f"{service.api}/service-info").document["storage"])
    service.assert_nothing_is_left()
    assert service.logged_errors() == []
    assert s3.secret_key not in service.log.read_text()
