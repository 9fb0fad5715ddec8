"""A made-up registry of rare disorders: no licence allows a real one to be used here.

Every patient has one of six disorders, and answers of a questionnaire: 30 symptoms, six laboratory values,
age and sex. A symptom is more or less frequent in a disorder; laboratory values are shifted by it. All this
differs little from one disorder to the next, so that a model of a few hundred patients remembers them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

DISORDERS = ("ataxia", "dystonia", "ganglionitis", "leukodystrophy", "myopathy", "porphyria")
SYMPTOMS = tuple(f"symptom_{number:02d}" for number in range(1, 31))
VALUES = ("creatine", "lactate", "ferritin", "ammonia", "copper", "protein")
CLINICS = ("aalborg", "bergen", "coimbra", "delft")


def registry(patients: int, seed: int, clinics: int = len(CLINICS)) -> pd.DataFrame:
    """Return a row per patient: clinic, age, sex, symptoms (yes, no), values in 0…100, disorder."""
    nature = np.random.default_rng(20)  # the disorders are what they are, whoever is asked
    frequent = nature.beta(1.2, 1.2, (len(DISORDERS), len(SYMPTOMS)))
    frequent = 0.3 + 0.4 * frequent
    level = nature.normal(50, 6, (len(DISORDERS), len(VALUES)))
    stream = np.random.default_rng(seed)
    disorder = stream.integers(len(DISORDERS), size=patients)
    symptoms = stream.random((patients, len(SYMPTOMS))) < frequent[disorder]
    values = np.clip(level[disorder] + stream.normal(0, 12, (patients, len(VALUES))), 0, 100)
    frame = {
        "clinic": np.array(CLINICS)[stream.integers(clinics, size=patients)],
        "age": np.round(stream.uniform(1, 80, patients), 1),
        "sex": stream.choice(["f", "m"], patients),
    }
    frame |= {name: np.where(symptoms[:, i], "yes", "no") for i, name in enumerate(SYMPTOMS)}
    frame |= {name: np.round(values[:, i], 1) for i, name in enumerate(VALUES)}
    return pd.DataFrame(frame | {"disorder": np.array(DISORDERS)[disorder]})


def scenario(table: str, public: str) -> dict[str, object]:
    """Return the scenario of four clinics, as a document; the files are of `registry`."""
    bounds: dict[str, object] = {"age": [0, 100]} | {name: [0, 100] for name in VALUES}
    categories = {"sex": ["f", "m"]} | {name: ["no", "yes"] for name in SYMPTOMS}
    return {
        "name": "healthy-outcomes",
        "seed": 11,
        "data": {
            "path": table,
            "public": public,
            "label": "disorder",
            "party": "clinic",
            "bounds": bounds,
            "categories": categories | {"disorder": list(DISORDERS)},
        },
        "model": {"hidden": [64]},
        "federation": {"rounds": 20},
        "training": {"lr": 0.1, "batch": 16, "epochs": 5, "private": {"lr": 0.3}},
        "adversary": {"attacks": ["loss"]},
    }
