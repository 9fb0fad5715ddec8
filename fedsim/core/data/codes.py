"""What a column's name and its numbers give away: names of ids, and numbers that stand for 'missing'."""

from __future__ import annotations

import re

import numpy as np

_ID_NAMES = frozenset(
    (
        "id", "index", "row", "rownr", "rownum", "rowid", "record", "recordid", "case", "caseid", "pid",
        "uid", "uuid", "guid", "mrn", "ssn", "patientid", "personid", "subjectid", "customerid", "clientid",
        "userid", "accountid", "memberid", "studyid", "encounterid", "visitid", "sampleid",
    )
)  # fmt: skip
_VAGUE_NAMES = frozenset(("x", "nr", "no", "key", "number"))
# 'patient_id', 'patient id', 'patientId', 'PatientID', and not 'uric_acid', 'thyroid' or 'COVID'.
_ENDS_IN_ID = re.compile(r"(?:[^A-Za-z](?i:id)|[a-z](?:Id|ID))$")
_MISSING_CODES = (-1, -2, -7, -8, -9, -77, -88, -99, -777, -888, -999, -9999, 99, 999, 9999, 99999, 777, 888)


def names_a_record(name: str) -> bool:
    """Whether a column's name says that it holds ids."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    return plain in _ID_NAMES or plain.startswith("unnamed") or _ENDS_IN_ID.search(name.strip()) is not None


def may_name_a_number(name: str) -> bool:
    """Whether a column's name, such as 'nr', may say that it numbers the records, or anything else."""
    return name.strip().strip("._#").lower() in _VAGUE_NAMES


def missing_codes(values: np.ndarray) -> list[str]:
    """Return numbers such as -9 or 999 that stand apart from all others and occur again and again."""
    known = values[np.isfinite(values)]
    if len(known) < 20:
        return []
    usual = [code for code in _MISSING_CODES if (known == code).sum() >= max(2, 0.005 * len(known))]
    suspects = list(dict.fromkeys([*usual, *_far_off(known)]))
    rest = known[~np.isin(known, suspects)]
    if not suspects or len(rest) < 10:
        return []
    low, high = rest.min(), rest.max()
    apart = max((high - low) * 0.25, 1e-12)
    return [
        f"{code:g}" for code in suspects if code > high + apart or (code < 0 <= low) or code < low - apart
    ]


def _far_off(known: np.ndarray) -> list[float]:
    """Return an extreme that is in 1 % of the cells, and twice as far off as all else is wide."""
    far = []
    for extreme in (known.max(), known.min()):
        rest = known[known != extreme]
        often = len(known) - len(rest) >= max(3, 0.01 * len(known))
        if often and len(rest) and np.abs(extreme - rest).min() > 2 * max(np.ptp(rest), 1e-12):
            far.append(float(extreme))
    return far
