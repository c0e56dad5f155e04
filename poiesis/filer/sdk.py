"""The parts of the MinIO SDK that transfers use, imported without the rest.

`minio/__init__` imports its administration client, and with it a cipher library and a C parser: half of the time that importing the SDK
takes, and a filer is a process that lives for a second. A stand-in takes that one module's place, unless the process has it already.
"""

# ruff: noqa: E402 - the stand-in has to be there before the first import

from __future__ import annotations

import sys
import types
from typing import Final

ADMINISTRATION: Final = "minio.minioadmin"
if "minio" not in sys.modules:
    sys.modules[ADMINISTRATION] = types.ModuleType(ADMINISTRATION)
    sys.modules[ADMINISTRATION].MinioAdmin = None  # type: ignore[attr-defined]

from minio import Minio
from minio.credentials.providers import AWSConfigProvider, EnvAWSProvider, IamAwsProvider, Provider, StaticProvider
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.sse import SseCustomerKey

if getattr(sys.modules.get(ADMINISTRATION), "__spec__", None) is None:
    sys.modules.pop(ADMINISTRATION, None)  # whoever wants the real one may still import it

__all__ = [
    "AWSConfigProvider",
    "EnvAWSProvider",
    "IamAwsProvider",
    "InvalidResponseError",
    "Minio",
    "MinioException",
    "Part",
    "Provider",
    "S3Error",
    "ServerError",
    "SseCustomerKey",
    "StaticProvider",
]
