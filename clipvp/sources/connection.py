"""How a client connects: it follows no redirect, which would carry its token to another host, and an answer is whole
by a deadline."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.request

REDIRECTS = (301, 302, 303, 307, 308)


def opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Return an opener whose ``timeout`` bounds the time from the end of a request to the end of its answer.

    A redirect raises ``HTTPError``. An answer that comes too late raises ``TimeoutError``, also while it is read.
    """
    return urllib.request.build_opener(_NoRedirect(), _Plain(), _Encrypted(), *handlers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given, **more) -> None:
        return None


class _Answer(http.client.HTTPResponse):
    """An answer, whose head and body are read by one deadline."""

    def __init__(self, sock: socket.socket, *given, **more):
        super().__init__(sock, *given, **more)
        self.fp = io.BufferedReader(_ByDeadline(sock, self.fp.detach()))


class _ByDeadline(io.RawIOBase):
    """The bytes of a socket. The socket's own timeout alone would begin anew with each byte."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase):
        limit = sock.gettimeout()
        self._socket, self._raw, self._end = sock, raw, None if limit is None else time.monotonic() + limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        if self._end is not None:
            left = self._end - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PlainConnection(http.client.HTTPConnection):
    response_class = _Answer


class _EncryptedConnection(http.client.HTTPSConnection):
    response_class = _Answer


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_PlainConnection, request)


class _Encrypted(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_EncryptedConnection, request)
