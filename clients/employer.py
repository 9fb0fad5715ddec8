"""Employers: a record is an employee."""

from __future__ import annotations

from clients.sector import Sector

EMPLOYER = Sector(
    name="employer",
    record="employee",
    tables=("adult", "location-30"),
    bounds={
        "age": (16, 90),
        "hours_per_week": (0, 80),
        "years_of_education": (0, 20),
        "tenure_years": (0, 50),
    },
)
