"""Banks: a record is a customer."""

from __future__ import annotations

from clients.sector import Sector

BANK = Sector(
    name="bank",
    record="customer",
    tables=("credit-default", "bank-marketing", "german-credit"),
    bounds={
        "age": (18, 90),
        "duration_months": (1, 360),
        "interest_rate": (0, 30),
        "credit_score": (300, 850),
        "fico": (300, 850),
    },
)
