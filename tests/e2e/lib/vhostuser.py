# SPDX-License-Identifier: LGPL-2.1-or-later
"""A vhost-user backend that says just enough for QEMU to start a device on it, and moves no data."""

import socket
import struct
import threading

GET_FEATURES = 1
VERSION_1 = 1 << 32
REPLY = 1 | 1 << 2  # protocol version 1, this is an answer


class Backend:
    """Listens at path, for QEMU's `-chardev socket,path=PATH`; ends with the with block."""

    def __init__(self, path):
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(2)
        self.clients = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    @staticmethod
    def _serve(client):
        """Of the requests of a device that the guest does not start, this one wants an answer."""
        try:
            while head := client.recv(12, socket.MSG_WAITALL):
                request, _, size = struct.unpack("<III", head)
                if size:
                    client.recv(size, socket.MSG_WAITALL)
                if request == GET_FEATURES:
                    client.sendall(struct.pack("<IIIQ", request, REPLY, 8, VERSION_1))
        except (OSError, struct.error):
            pass  # QEMU ended in the middle of it

    def close(self):
        # shutdown, because a close alone does not wake the thread that accepts
        for sock in [self.listener, *self.clients]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
