"""Does the lab do what it says? A lie here would make every other test on it worthless."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import paramiko
import pytest

from tests.lab.command import LabError, wait_until
from tests.lab.host import Host
from tests.lab.lab import Lab

LISTEN = """
import socket, sys
receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
receiver.bind(("", 9999))
print("ready", flush=True)
receiver.settimeout(float(sys.argv[1]))
try:
    print(receiver.recv(9).decode(), flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""
