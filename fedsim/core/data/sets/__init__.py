"""The named sets: their files, schemas and loaders.

Bounds are round numbers from each set's public documentation or from what is plausible in the field (a
clinical range, a credit limit), never statistics of the records at hand; values beyond them are clipped.
"""

from __future__ import annotations

from fedsim.core.data.sets.finance import CREDIT, GERMAN, MARKETING
from fedsim.core.data.sets.health import BREAST_CANCER, DIABETES_130, HEART, PROGRESSION
from fedsim.core.data.sets.images import DIGITS, MNIST
from fedsim.core.data.sets.letters import CLINIC_LETTERS
from fedsim.core.data.sets.people import ADULT, LOCATION
from fedsim.core.data.sets.shakespeare import SHAKESPEARE
from fedsim.core.data.sources import DataSet

SETS: dict[str, DataSet] = {
    data.name: data
    for data in (
        PROGRESSION,
        BREAST_CANCER,
        DIGITS,
        HEART,
        DIABETES_130,
        CREDIT,
        MARKETING,
        GERMAN,
        ADULT,
        LOCATION,
        MNIST,
        CLINIC_LETTERS,
        SHAKESPEARE,
    )
}
