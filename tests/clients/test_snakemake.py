"""Snakemake 9 with its TES executor over S3, and Snakemake 7 with `--tes` over shared directories.

Each job runs Snakemake again inside of its task, where the image has to contain it: here the environment of the client, put into PATH.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service
from tests.integration.embedded.test_s3 import objects, put
from tests.servers.s3 import S3Server

RULES = """
rule all:
    input: "total.txt"

rule upper:
    input: "reads/{sample}.txt"
    output: "upper/{sample}.txt"
    shell: "tr a-z A-Z < {input} > {output}"

rule total:
    input: expand("upper/{sample}.txt", sample=["a", "b"])
    output: "total.txt"
    shell: "cat {input} > {output}"
"""
PATH = "/usr/local/bin:/usr/bin:/bin"


@pytest.mark.timeout(300)
def test_version_9_over_s3(service: Service, s3: S3Server, tmp_path: Path) -> None:
    client = Client(programs_of("snakemake"), tmp_path)
    client.write("Snakefile", RULES)
    for sample in ("a", "b"):
        put(s3, f"reads/{sample}.txt", f"{sample}\n".encode())
    storage = [
        "--default-storage-provider",
        "s3",
        "--default-storage-prefix",
        f"s3://{s3.bucket}",
        "--storage-s3-endpoint-url",
        s3.endpoint,
    ]
    keys = {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": s3.access_key, "SNAKEMAKE_STORAGE_S3_SECRET_KEY": s3.secret_key}
    # The image has the storage plugin, so that the job need not install it from a package registry.
    inside = f"export PATH={client.programs}:{PATH} HOME=/tmp; pip() {{ :; }}"
    client.run(
        *("snakemake", "--executor", "tes", "--tes-url", service.url, "--jobs", "2", "--precommand", inside),
        *("--seconds-between-status-checks", "1", "--latency-wait", "5", *storage),
        variables=keys,
    )
    assert objects(s3)["total.txt"] == b"A\nB\n"


@pytest.mark.timeout(300)
def test_version_7_over_shared_directories(service: Service, files: Path) -> None:
    client = Client(programs_of("snakemake7"), files)
    client.write("Snakefile", 'envvars: "PATH"\n' + RULES)
    for sample in ("a", "b"):
        client.write(f"reads/{sample}.txt", f"{sample}\n")
    client.run(
        *(
            "snakemake",
            "--tes",
            service.url,
            "--jobs",
            "2",
            "--envvars",
            "PATH",
            "--container-image",
            "snakemake/snakemake:v7.32.4",
        ),
        *("--max-status-checks-per-second", "2", "--latency-wait", "5"),
    )
    assert (files / "total.txt").read_text() == "A\nB\n"
