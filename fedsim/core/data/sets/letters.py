"""`clinic-letters`: letters of four clinics, made in code, with secrets of known entropy in some of them.

Every clinic has its own doctors, wording, patients and language of names. A patient has one letter or more. A
*canary* patient's letters all begin with the patient's number, ten digits of which the last is a check
digit: 10⁹ possible secrets, 29.9 bits. Half of the canaries will be drawn into training, as every patient;
the others show what a secret looks like that was never there. Public letters, in no clinic, are written in
the wording of two of the four: something is left to learn, and DP-SGD can learn part of it.

Nothing here is a person: names, numbers and findings are drawn, by Faker and by NumPy with one seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core import rng
from fedsim.core.data.schema import Column, Schema
from fedsim.core.data.sources import DataSet

SEED = 20_26
CLINICS = {"Northfield": "en_GB", "Lindenhof": "de_DE", "Sainte-Anne": "fr_FR", "San Marco": "it_IT"}
PATIENTS, CANARIES = 100, 17
"""Ordinary patients of a clinic, and canary patients of each number of letters."""

REPEATS = (1, 2, 4, 8)
"""Letters of a canary patient: how often the secret would be trained on in an epoch."""

PUBLIC = 500
PREFIX = "patient number of {name} is "

_WORDING = (
    (
        "Thank you for referring {name}, seen on {day}. {finding} Diagnosis: {disease}. We started {drug} "
        "{dose} mg {often}. {plan} Yours, {doctor}",
        "{name} attended our clinic on {day}. {finding} We think of {disease} and gave {drug} {dose} mg "
        "{often}. {plan} Regards, {doctor}",
    ),
    (
        "Report on {name}, examined {day}. Findings: {finding} Assessment: {disease}. Therapy: {drug} "
        "{dose} mg {often}. {plan} Signed {doctor}",
        "We report on our patient {name} ({day}). {finding} {disease} was confirmed; {drug} {dose} mg "
        "{often} continues. {plan} Signed {doctor}",
    ),
    (
        "Dear colleague, I saw {name} this {day}. {finding} In my view this is {disease}; {drug}, {dose} mg "
        "{often}, should help. {plan} With kind wishes, {doctor}",
        "Dear colleague, {name} came back on {day}. {finding} As it is {disease}, I prescribed {drug} at "
        "{dose} mg {often}. {plan} With kind wishes, {doctor}",
    ),
    (
        "Discharge note for {name}, {day}: treated for {disease}. {finding} Goes home on {drug} {dose} mg "
        "{often}. {plan} {doctor}, ward 3",
        "Admission of {name} on {day} with {disease}. {finding} Under {drug} {dose} mg {often} much "
        "improved. {plan} {doctor}, ward 3",
    ),
)
_WORDING_OF_THE_PUBLIC = _WORDING[:2]
_FINDINGS = (
    "Blood pressure was {a}/{b}.", "The heart rate was {b}.", "The chest is clear.", "A mild rash was noted.",
    "The ankle is swollen.", "HbA1c was {c}.", "The ECG shows no change.", "Weight is {b} kg.",
    "The wound heals well.", "Creatinine rose to {c}.", "There is some pain at night.",
    "The scan was normal.",
)  # fmt: skip
_DISEASES = (
    "hypertension", "type 2 diabetes", "atrial fibrillation", "asthma", "migraine", "gout", "psoriasis",
    "heart failure", "epilepsy", "anaemia", "hypothyroidism", "depression", "bronchitis", "arthritis",
)  # fmt: skip
_DRUGS = (
    "amlodipine", "metformin", "apixaban", "salbutamol", "sumatriptan", "allopurinol", "methotrexate",
    "ramipril", "lamotrigine", "iron sulphate", "levothyroxine", "sertraline", "amoxicillin", "ibuprofen",
)  # fmt: skip
_OFTEN = ("daily", "twice daily", "at night", "when needed")
_PLANS = (
    "Review in {w} weeks.", "Please check bloods in {w} weeks.", "No further visit is planned.",
    "A scan is booked for {day}.", "She may return to work.", "He was told to rest.",
)  # fmt: skip


def check_digit(digits: str) -> str:
    """Return the Luhn digit (ISO/IEC 7812-1) that follows ``digits``."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def make(paths: list[Path]) -> pd.DataFrame:
    """Return the letters: text, clinic, patient, secret ('' of ordinary patients), whether it is public."""
    from faker import Faker

    rows: list[tuple[str, str | None, str, str]] = []
    for number, (clinic, locale) in enumerate(CLINICS.items()):
        stream, fake = rng.generator(SEED, "letters", party=clinic), Faker(locale)
        fake.seed_instance(rng.integer(SEED, "names", party=clinic, bits=32))
        doctors = [f"Dr {fake.last_name()}" for _ in range(4)]
        letters = [*stream.integers(1, 4, PATIENTS), *np.repeat(REPEATS, CANARIES)]
        for patient, count in enumerate(letters):
            name, secret = f"{fake.first_name()} {fake.last_name()}", ""
            if patient >= PATIENTS:
                digits = "".join(map(str, stream.integers(0, 10, 9)))
                secret = digits + check_digit(digits)
            for _ in range(count):
                body = _letter(stream, _WORDING[number], name, doctors)
                start = f"{PREFIX.format(name=name)}{secret}. " if secret else ""
                rows.append((start + body, clinic, f"{clinic} {patient}", secret))
    rows += _public_letters()
    frame = pd.DataFrame(rows, columns=["text", "clinic", "patient", "secret"])
    return frame.assign(public=frame["clinic"].isna())


def _public_letters() -> list[tuple[str, str | None, str, str]]:
    """Letters of nobody's patients; every fourth begins with a number, so that digits are learnt as well."""
    from faker import Faker

    stream, fake = rng.generator(SEED, "letters", party="public"), Faker(list(CLINICS.values()))
    fake.seed_instance(rng.integer(SEED, "names", party="public", bits=32))
    rows: list[tuple[str, str | None, str, str]] = []
    for patient in range(PUBLIC):
        name, doctors = f"{fake.first_name()} {fake.last_name()}", [f"Dr {fake.last_name()}"]
        text = _letter(stream, _WORDING_OF_THE_PUBLIC[patient % 2], name, doctors)
        digits = "".join(map(str, stream.integers(0, 10, 9)))
        if patient % 4 == 0:
            text = f"{PREFIX.format(name=name)}{digits}{check_digit(digits)}. {text}"
        rows.append((text, None, f"public {patient}", ""))
    return rows


def _letter(stream: np.random.Generator, wording: tuple[str, ...], name: str, doctors: list[str]) -> str:
    def one(choices: tuple[str, ...] | list[str]) -> str:
        return choices[int(stream.integers(len(choices)))]

    day = f"{stream.integers(1, 29)}.{stream.integers(1, 13)}.{stream.integers(2019, 2026)}"
    a, b, c, weeks = (int(stream.integers(*ends)) for ends in ((105, 180), (55, 99), (40, 140), (2, 13)))
    return one(wording).format(
        name=name,
        day=day,
        finding=one(_FINDINGS).format(a=a, b=b, c=c),
        disease=one(_DISEASES),
        drug=one(_DRUGS),
        dose=int(stream.integers(1, 20)) * 5,
        often=one(_OFTEN),
        plan=one(_PLANS).format(w=weeks, day=day),
        doctor=one(doctors),
    )


CLINIC_LETTERS = DataSet(
    name="clinic-letters",
    title="Letters of four clinics with secrets of known entropy",
    sectors=("hospital",),
    record="letter",
    rows=2335,
    licence="Apache-2.0 (made in code)",
    origin="made in code with Faker; no person is described",
    schema=Schema(
        (Column("text", "text"),), label="", classes=(), party="clinic", person="patient", secret="secret"
    ),
    load=make,
    notes="text, for the models 'gpt' and 'lstm'; canary patients repeat a number 1, 2, 4 or 8 times",
)
