"""Named data sets of people."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedsim.core.data.schema import Schema, categories, numbers
from fedsim.core.data.sets.reading import CC_BY_4, UCI, UCI_FILES, codes, csv, with_numbers, words
from fedsim.core.data.sources import DataSet, File, unpack

_ADULT_NAMES = words(
    """age workclass fnlwgt education education-num marital-status occupation relationship race sex
    capital-gain capital-loss hours-per-week native-country income"""
)
_ADULT_SCHEMA = Schema(
    columns=(
        *numbers(
            {
                "age": (17, 90),
                "fnlwgt": (10_000, 500_000),  # people that this one stands for in the census
                "education-num": (1, 16),
                "capital-gain": (0, 20_000),  # US$
                "capital-loss": (0, 3_000),
                "hours-per-week": (1, 99),
            }
        ),
        *categories(
            {
                "workclass": words(
                    """Federal-gov Local-gov Never-worked Private Self-emp-inc Self-emp-not-inc State-gov
                    Without-pay"""
                ),
                "education": words(
                    """Preschool 1st-4th 5th-6th 7th-8th 9th 10th 11th 12th HS-grad Some-college Assoc-voc
                    Assoc-acdm Bachelors Masters Prof-school Doctorate"""
                ),
                "marital-status": words(
                    """Divorced Married-AF-spouse Married-civ-spouse Married-spouse-absent Never-married
                    Separated Widowed"""
                ),
                "occupation": words(
                    """Adm-clerical Armed-Forces Craft-repair Exec-managerial Farming-fishing
                    Handlers-cleaners Machine-op-inspct Other-service Priv-house-serv Prof-specialty
                    Protective-serv Sales Tech-support Transport-moving"""
                ),
                "relationship": words("Husband Not-in-family Other-relative Own-child Unmarried Wife"),
                "race": words("Amer-Indian-Eskimo Asian-Pac-Islander Black Other White"),
                "sex": ("Female", "Male"),
                "native-country": words(
                    """Cambodia Canada China Columbia Cuba Dominican-Republic Ecuador El-Salvador England
                    France Germany Greece Guatemala Haiti Holand-Netherlands Honduras Hong Hungary India Iran
                    Ireland Italy Jamaica Japan Laos Mexico Nicaragua Outlying-US(Guam-USVI-etc) Peru
                    Philippines Poland Portugal Puerto-Rico Scotland South Taiwan Thailand Trinadad&Tobago
                    United-States Vietnam Yugoslavia"""
                ),
            }
        ),
    ),
    label="income",
    classes=("<=50K", ">50K"),
)


def _load_adult(paths: list[Path]) -> pd.DataFrame:
    # The test file starts with a line that is no record, and ends its labels with a full stop.
    parts = [
        csv(
            path.read_text(encoding="ascii"),
            missing=("?",),
            header=None,
            names=list(_ADULT_NAMES),
            skiprows=skipped,
            skipinitialspace=True,
        )
        for path, skipped in zip(paths, (0, 1), strict=True)
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame["income"] = frame["income"].str.rstrip(".").astype(object)
    return with_numbers(frame, _ADULT_SCHEMA)


ADULT = DataSet(
    name="adult",
    title="Adult / Census Income, USA 1994",
    sectors=("employer",),
    record="employee",
    rows=48_842,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/2/adult",
    folder="adult",
    files=(
        File(
            "adult.data",
            f"{UCI_FILES}/adult/adult.data",
            "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        ),
        File(
            "adult.test",
            f"{UCI_FILES}/adult/adult.test",
            "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        ),
    ),
    schema=_ADULT_SCHEMA,
    load=_load_adult,
    notes="training and test part in one table; whether a person earns more than 50,000 US$ a year",
)


_PLACES = 446
_LOCATION_SCHEMA = Schema(
    # One indicator each: 1 where the person was there; not having been there is all zeros.
    columns=categories({f"place {number}": ("1",) for number in range(1, _PLACES + 1)}),
    label="cluster",
    classes=codes(1, 30),
)


def _load_location(paths: list[Path]) -> pd.DataFrame:
    content = unpack(paths[0], LOCATION.files[0].member).decode("ascii")
    return csv(content, header=None, names=[_LOCATION_SCHEMA.label, *_LOCATION_SCHEMA.names])


LOCATION = DataSet(
    name="location-30",
    title="Location-30: Foursquare check-ins in Bangkok (Shokri et al. 2017)",
    sectors=("employer",),
    record="person",
    rows=5010,
    licence="none stated; published for research",
    origin="https://github.com/privacytrustlab/datasets",
    folder="location30",
    files=(
        File(
            "dataset_location.tgz",
            "https://github.com/privacytrustlab/datasets/raw/master/dataset_location.tgz",
            "927203f85a868f8ee17a0ded1dc61699efe602167beabe34fbf45b4b1de94b33",
            "2ca8f7fc231251e089823e44d39f2d1eed124574cc351c7f80368cfe631dd718",
            ("bangkok",),
        ),
    ),
    schema=_LOCATION_SCHEMA,
    load=_load_location,
    notes="446 places visited or not, 30 clusters of persons; the benchmark that leaks most",
)
