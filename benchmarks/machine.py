"""What a benchmark ran on."""

import platform
from pathlib import Path


def processor_name() -> str:
    names = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    return names[0].split(':', 1)[1].strip() if names else platform.machine()
