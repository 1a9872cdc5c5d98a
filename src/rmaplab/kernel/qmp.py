# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor protocol (QMP), as much of it as is needed: one command, one answer.

A QMP socket serves one client at a time, and greets it when its turn comes.  Events that arrive between answers
are passed over.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final

from rmaplab.kernel.errors import GuestError


class Monitor:
    """A client of a QMP socket that is connected already.  Whoever makes it closes the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection
        self._received = b""
        self._read()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """:raises GuestError: QEMU refused, or has ended, or this is no QMP socket"""
        self._connection.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise GuestError(f"QEMU refused {name}: {answer['error'].get('desc')}")

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            try:
                data = self._connection.recv(65536)
            except OSError as error:
                raise GuestError(f"QEMU's monitor does not answer: {error}") from None
            if not data:
                raise GuestError("QEMU has ended")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise GuestError("what answers there is not QEMU's monitor (QMP)") from None
        return answer
