"""Hospitals: a record is a patient."""

from __future__ import annotations

from clients.sector import Sector

HOSPITAL = Sector(
    name="hospital",
    record="patient",
    tables=("diabetes-progression", "heart-disease", "diabetes-130", "breast-cancer"),
    bounds={
        # Ranges of adult reference intervals, widened to what is seen in clinical practice.
        "age": (0, 100),
        "bmi": (15, 50),
        "height": (130, 210),
        "weight": (35, 160),
        "systolic": (80, 200),
        "diastolic": (40, 120),
        "sbp": (80, 200),
        "dbp": (40, 120),
        "heart_rate": (40, 180),
        "temperature": (34, 42),
        "glucose": (50, 300),
        "hba1c": (4, 14),
        "cholesterol": (100, 400),
        "creatinine": (0.3, 8),
    },
)
