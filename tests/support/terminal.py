"""The command on a pseudo terminal, as people see it."""

import os
import pty
import sys


def run_in_terminal(*arguments: str, columns: int = 100, lines: int = 30) -> tuple[int, str]:
    """Exit status of ``rdkernels *arguments`` and all that it has written."""
    pid, fd = pty.fork()
    if pid == 0:
        size = {"COLUMNS": str(columns), "LINES": str(lines)}
        os.environ.update(TERM="xterm-256color", OMP_NUM_THREADS="1", **size)
        os.execv(sys.executable, [sys.executable, "-m", "rdkernels", *arguments])
    output = b""
    while True:
        try:
            chunk = os.read(fd, 65536)
        except OSError:  # Linux reports the end of a pty so
            break
        if not chunk:
            break
        output += chunk
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), output.decode()
