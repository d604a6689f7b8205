"""A way to a daemon's socket that cuts connections, each after so many bytes."""

import pathlib
import socket
import threading


class Cuts:
    """Listens at a path and hands on to a socket; the first connections are cut after the bytes that are listed."""

    def __init__(self, path: pathlib.Path, target: str, after: list[int]):
        self.target, self.after, self.cut = target, after, 0
        self.server = f"unix://{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self._listener.accept()
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.target)
            left = [self.after.pop(0) if self.after else None]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink, left), daemon=True).start()

    def _carry(self, source, sink, left):
        try:
            while data := source.recv(16 << 10):
                sink.sendall(data)
                if left[0] is not None:
                    left[0] -= len(data)
                    if left[0] <= 0:
                        left[0] = None
                        self.cut += 1
                        break
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
