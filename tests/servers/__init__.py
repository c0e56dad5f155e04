"""Real servers for tests, as a pytest plugin: Redis, a Mongo-compatible server, S3 and FTP.

Each starts on the first use in a session (under xdist: in each worker that uses it), listens on 127.0.0.1 alone, keeps
its data in a temporary folder, and is stopped by its process id at the end. Where its program is found nowhere, the
tests that ask for it are skipped with the reason. Every test gets its own room: an emptied Redis, a fresh database, a
fresh bucket, a fresh FTP root.
"""

from tests.servers.ftp import FtpServer, ftp
from tests.servers.mongo import mongo_server, mongo_url
from tests.servers.redis import redis_server, redis_url
from tests.servers.s3 import S3Server, s3, s3_server

__all__ = [
    "FtpServer",
    "S3Server",
    "ftp",
    "mongo_server",
    "mongo_url",
    "redis_server",
    "redis_url",
    "s3",
    "s3_server",
]
