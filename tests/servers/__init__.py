"""Real servers for tests, as a pytest plugin: Redis, a Mongo-compatible server, S3, FTP, OpenID providers, and
emulators of Azure and Google storage.

Each starts on the first use in a session (under xdist: in each worker that uses it), listens on 127.0.0.1 only, keeps
its data in a temporary directory, and is stopped by its process id at the end. Where its program is not installed, the
tests that need it are skipped with the reason. Every test starts empty: an emptied Redis, a new database, a
new bucket, a new FTP root.
"""

from tests.servers.azure import AzureServer, azure, azure_server
from tests.servers.ftp import FtpServer, ftp
from tests.servers.gcs import GcsServer, gcs, gcs_server
from tests.servers.jaeger import Jaeger, jaeger
from tests.servers.keycloak import Keycloak, keycloak
from tests.servers.mongo import mongo_server, mongo_url
from tests.servers.oidc import OidcServer, Zitadel, oidc, own_oidc, zitadel
from tests.servers.otlp import Collector, collector
from tests.servers.redis import redis_server, redis_url
from tests.servers.s3 import S3Server, s3, s3_of_users, s3_server

__all__ = [
    "AzureServer",
    "Collector",
    "FtpServer",
    "GcsServer",
    "Jaeger",
    "Keycloak",
    "OidcServer",
    "S3Server",
    "Zitadel",
    "azure",
    "azure_server",
    "collector",
    "ftp",
    "gcs",
    "gcs_server",
    "jaeger",
    "keycloak",
    "mongo_server",
    "mongo_url",
    "oidc",
    "own_oidc",
    "redis_server",
    "redis_url",
    "s3",
    "s3_of_users",
    "s3_server",
    "zitadel",
]
