"""For all tests."""

from __future__ import annotations

import signal

# A shell that starts jobs in the background lets them ignore Ctrl-C, and their children with them: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
