"""A node of this package in a process of its own, as the demo and the tests start it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


class NodeProcess:
    """Runs `mask2iv_ros.ros.<module>`; as a context manager it stops it, and raises if it had ended before.

    Args:
        module: 'node' or 'sim_camera'.
        parameters: ROS parameters by name.
        log: file for what it prints.
        prefix: command to run it under.
        remaps: new names by old, e.g. {'image': '/camera/image', '__ns': '/left'}.
    """

    def __init__(
        self,
        module: str,
        parameters: dict,
        log: Path,
        prefix: tuple[str, ...] = (),
        remaps: dict[str, str] | None = None,
    ):
        command = [*prefix, sys.executable, '-m', f'mask2iv_ros.ros.{module}', '--ros-args']
        for old, new in (remaps or {}).items():
            command += ['-r', f'{old}:={new}']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        self.module, self.log = module, log
        with log.open('w') as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None or issubclass(kind, Exception):  # Ctrl-C ends all processes of a terminal
                self.check()
        finally:
            self.stop()

    def check(self):
        """Raise RuntimeError, with status and log, if the process has ended."""
        if self.process.poll() is not None:
            status = self.process.returncode
            raise RuntimeError(f'{self.module} ended with status {status}; its log is {self.log}')

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, unless it has ended, and return the exit status."""
        self.process.send_signal(number)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return self.process.returncode
