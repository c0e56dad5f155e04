"""Toil with its TES batch system, and the job store in S3: a Python workflow whose jobs hand results to each other.

Each job runs Toil again inside of its task: the environment of the client is put into PATH there.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients.conftest import Client, programs_of
from tests.integration.embedded.service import Service
from tests.servers.s3 import S3Server

WORKFLOW = """
import os, sys
import toil.lib.aws.s3
from toil.common import Toil
from toil.job import Job

# SeaweedFS has neither; both are about the new bucket only.
toil.lib.aws.s3.enable_public_objects = toil.lib.aws.s3.enable_encryption = lambda *_, **__: None

def count(job, text):
    assert "/tmp" in os.environ["TOIL_WORKDIR"]
    return len(text.split())

def total(job, counts):
    return sum(counts)

def main(job, texts):
    counts = [job.addChildJobFn(count, text, cores=1, memory="100M", disk="100M").rv() for text in texts]
    return job.addFollowOnJobFn(total, counts, cores=1, memory="100M", disk="100M").rv()

options = Job.Runner.getDefaultArgumentParser().parse_args()
with Toil(options) as toil:
    print("total:", toil.start(Job.wrapJobFn(main, ["a b c", "d e"], cores=1, memory="100M", disk="100M")))
"""


@pytest.mark.timeout(300)
def test_jobs_that_hand_results_to_each_other(service: Service, s3: S3Server, tmp_path: Path) -> None:
    client = Client(programs_of("toil"), tmp_path)
    client.write("workflow.py", WORKFLOW)
    address = urlsplit(s3.endpoint)
    variables = {
        **{"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_DEFAULT_REGION": s3.region},
        **{"TOIL_S3_HOST": str(address.hostname), "TOIL_S3_PORT": str(address.port), "TOIL_S3_USE_SSL": "False"},
        **{"AWS_ENDPOINT_URL_S3": s3.endpoint, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"},
        **{"TOIL_APPLIANCE_SELF": "quay.io/ucsc_cgl/toil:9.6.0", "TOIL_CHECK_ENV": "False"},
    }
    inside = {**variables, "PATH": f"{client.programs}:/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"}
    done = client.run(
        *(
            "python",
            "workflow.py",
            f"aws:{s3.region}:{s3.bucket}",
            "--batchSystem",
            "tes",
            "--tesEndpoint",
            service.url,
        ),
        *("--retryCount", "0", "--logInfo", "--disableProgress"),
        *(part for name, value in inside.items() for part in ("--setEnv", f"{name}={value}")),
        variables=variables,
    )
    assert "total: 5" in done.stdout
