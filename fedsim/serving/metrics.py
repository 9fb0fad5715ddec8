"""Counters of one process, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Requests by route and status, records answered, ε spent, and a histogram of seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds, self._records, self._epsilon = 0.0, 0, 0.0

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is one of the service's own, never what was asked for."""
        with self._lock:
            self._requests[route, status] += 1
            self._seconds += seconds
            for bound in BUCKETS:
                self._buckets[bound] += seconds <= bound

    def answer(self, records: int, epsilon: float) -> None:
        """Count answered records and what they cost."""
        with self._lock:
            self._records += records
            self._epsilon += epsilon

    def text(self) -> str:
        """Return all counters."""
        with self._lock:
            total = sum(self._requests.values())
            lines = ["# HELP fedsim_requests_total Requests.", "# TYPE fedsim_requests_total counter"]
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'fedsim_requests_total{{route="{route}",status="{status}"}} {count}')
            lines += ["# HELP fedsim_records_total Records answered.", "# TYPE fedsim_records_total counter"]
            lines.append(f"fedsim_records_total {self._records}")
            lines += ["# HELP fedsim_epsilon_total ε spent.", "# TYPE fedsim_epsilon_total counter"]
            lines.append(f"fedsim_epsilon_total {self._epsilon!r}")
            lines += ["# HELP fedsim_request_seconds Seconds until the answer was ready."]
            lines += ["# TYPE fedsim_request_seconds histogram"]
            for bound in BUCKETS:
                lines.append(f'fedsim_request_seconds_bucket{{le="{bound}"}} {self._buckets[bound]}')
            lines.append(f'fedsim_request_seconds_bucket{{le="+Inf"}} {total}')
            lines += [
                f"fedsim_request_seconds_sum {self._seconds!r}",
                f"fedsim_request_seconds_count {total}",
            ]
        return "\n".join(lines) + "\n"
