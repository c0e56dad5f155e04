"""Sends messages to webhooks over HTTP, and connects only to addresses that the site allows (`filer.guard`)."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from poiesis.config import WebhookSettings
from poiesis.domain.errors import AccessDenied, PoiesisError
from poiesis.filer.guard import Guard
from poiesis.filer.network import PORTS, open_connection, tls_context
from poiesis.ports.webhooks import Answer

CONNECT_S: Final = 5.0
DEADLINE_S: Final = 15.0  # for a whole message: Standard Webhooks suggests 15 to 30 s
MAX_ANSWER_BYTES: Final = 64 * 1024


class HttpWebhookSender:
    """Raises on construction: ConfigurationError."""

    def __init__(self, settings: WebhookSettings, *, deadline_s: float = DEADLINE_S) -> None:
        self._guard = Guard(settings.allow_addresses)
        self._tls = tls_context(settings.ca_file)
        self._deadline_s = deadline_s

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = _Connection(self._guard, host, port, self._tls if parts.scheme == "https" else None)
        # a receiver that sends a byte from time to time must not hold the thread
        deadline = threading.Timer(self._deadline_s, connection.abort)
        deadline.daemon = True
        deadline.start()
        try:
            connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            # the status is the answer; the rest is read only so that the receiver can write it
            with suppress(OSError, http.client.HTTPException, ValueError):
                response.read(MAX_ANSWER_BYTES)
            return Answer(response.status, retry_after_s=_seconds(response.headers.get("Retry-After")))
        except AccessDenied as error:
            return Answer(None, str(error))
        except ssl.SSLCertVerificationError:
            return Answer(None, f"the certificate of {host} is not trusted")
        except (PoiesisError, OSError, http.client.HTTPException, ValueError) as error:
            if connection.is_aborted:
                return Answer(None, f"{host} did not answer within {self._deadline_s:.0f} s")
            return Answer(None, f"{host} cannot be reached: {str(error)[:200] or type(error).__name__}")
        finally:
            deadline.cancel()
            connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, guard: Guard, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        if tls is not None:
            self.default_port = PORTS["https"]  # of the header Host
        self._guard = guard
        self._tls = tls
        self._opened: socket.socket | None = None  # `sock` is None once a response with `Connection: close` has begun
        self.is_aborted = False

    def connect(self) -> None:
        self.sock = self._opened = open_connection(
            self.host,
            self.port,
            timeout_s=CONNECT_S,
            tls=self._tls,
            guard=self._guard,
            is_late=lambda: self.is_aborted,
        )
        self.sock.settimeout(DEADLINE_S)
        if self.is_aborted:
            raise TimeoutError("too late")

    def abort(self) -> None:
        """Called by another thread."""
        self.is_aborted = True
        with suppress(OSError):
            if self._opened is not None:
                self._opened.shutdown(socket.SHUT_RDWR)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() and len(text) < 8 else None
