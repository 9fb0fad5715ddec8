"""Named data sets of banks' customers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedsim.core.data.schema import Schema, categories, numbers
from fedsim.core.data.sets.reading import CC_BY_4, UCI, UCI_FILES, codes, csv, with_numbers, words
from fedsim.core.data.sources import DataSet, File, unpack

_MONEY = 30_000  # NT$, a typical monthly income's worth: payments beyond it are clipped
_CREDIT_SCHEMA = Schema(
    columns=(
        *numbers(
            {
                "LIMIT_BAL": (0, 500_000),  # NT$
                "AGE": (18, 80),
                # Months of delay: -2 no use, -1 paid in full, 0 revolving, 1 … 8 months.
                **{f"PAY_{month}": (-2, 8) for month in (0, 2, 3, 4, 5, 6)},
                **{f"BILL_AMT{month}": (-50_000, 300_000) for month in range(1, 7)},
                **{f"PAY_AMT{month}": (0, _MONEY) for month in range(1, 7)},
            }
        ),
        *categories({"SEX": ("1", "2"), "EDUCATION": codes(0, 6), "MARRIAGE": codes(0, 3)}),
    ),
    label="default.payment.next.month",
    classes=("0", "1"),
)


def _load_credit(paths: list[Path]) -> pd.DataFrame:
    return with_numbers(csv(paths[0].read_bytes()), _CREDIT_SCHEMA)


CREDIT = DataSet(
    name="credit-default",
    title="Default of credit card clients, Taiwan (Yeh & Lien 2009)",
    sectors=("bank",),
    record="client",
    rows=30_000,
    licence=CC_BY_4,
    origin="https://www.kaggle.com/datasets/uciml/default-of-credit-card-clients-dataset",
    folder="credit_default_uci",
    files=(
        File(
            "UCI_Credit_Card.csv",
            None,
            "a0f0ab49d6326671d6cd83be5c88dcf18007025fe9a53ecd699119c871176ca1",
        ),
    ),
    schema=_CREDIT_SCHEMA,
    load=_load_credit,
    notes=f"first published at {UCI}/dataset/350 as a spreadsheet; the CSV edition needs a login",
)


_MARKETING_SCHEMA = Schema(
    columns=(
        *numbers(
            {
                "age": (18, 90),
                "balance": (-2_000, 10_000),  # yearly average, euros
                "day": (1, 31),
                "duration": (0, 1_200),  # seconds
                "campaign": (1, 15),
                "pdays": (0, 400),  # days since an earlier campaign; missing where there was none
                "previous": (0, 10),
            },
            missing=("pdays",),
        ),
        *categories(
            {
                "job": words(
                    "admin. blue-collar entrepreneur housemaid management retired self-employed services "
                    "student technician unemployed unknown"
                ),
                "marital": words("divorced married single"),
                "education": words("primary secondary tertiary unknown"),
                "default": ("no", "yes"),
                "housing": ("no", "yes"),
                "loan": ("no", "yes"),
                "contact": words("cellular telephone unknown"),
                "month": words("jan feb mar apr may jun jul aug sep oct nov dec"),
                "poutcome": words("failure other success unknown"),
            }
        ),
    ),
    label="y",
    classes=("no", "yes"),
)


def _load_marketing(paths: list[Path]) -> pd.DataFrame:
    frame = csv(unpack(paths[0], MARKETING.files[0].member), sep=";")
    frame["pdays"] = frame["pdays"].mask(frame["pdays"] == "-1", None)
    return with_numbers(frame, _MARKETING_SCHEMA)


MARKETING = DataSet(
    name="bank-marketing",
    title="Bank Marketing, Portugal (Moro et al. 2011), bank-full",
    sectors=("bank",),
    record="client",
    rows=45_211,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/222/bank+marketing",
    folder="bank_marketing",
    files=(
        File(
            "bank+marketing.zip",
            f"{UCI}/static/public/222/bank+marketing.zip",
            "78ec0430a915e99836a533b79bdf635ee27e86fbd348bcdb4080f572b1a24aee",
            "d1513ec63b385506f7cfce9f2c5caa9fe99e7ba4e8c3fa264b3aaf0f849ed32d",
            ("bank.zip", "bank-full.csv"),
        ),
    ),
    schema=_MARKETING_SCHEMA,
    load=_load_marketing,
    notes="'duration' is known only after the call; data.ignore = ['duration'] for a realistic predictor",
)


_GERMAN_NAMES = words(
    """status duration history purpose amount savings employment rate personal debtors residence property age
    plans housing credits job liable telephone foreign risk"""
)
_GERMAN_SCHEMA = Schema(
    columns=(
        *numbers(
            {
                "duration": (0, 72),  # months
                "amount": (0, 15_000),  # DM
                "rate": (1, 4),  # instalment, in classes of its share of the income
                "residence": (1, 4),
                "age": (18, 80),
                "credits": (1, 4),
                "liable": (1, 2),
            }
        ),
        # Codes are A, the number of the attribute, the number of the value.
        *categories(
            {
                "status": words("A11 A12 A13 A14"),
                "history": words("A30 A31 A32 A33 A34"),
                "purpose": words("A40 A41 A42 A43 A44 A45 A46 A47 A48 A49 A410"),
                "savings": words("A61 A62 A63 A64 A65"),
                "employment": words("A71 A72 A73 A74 A75"),
                "personal": words("A91 A92 A93 A94 A95"),
                "debtors": words("A101 A102 A103"),
                "property": words("A121 A122 A123 A124"),
                "plans": words("A141 A142 A143"),
                "housing": words("A151 A152 A153"),
                "job": words("A171 A172 A173 A174"),
                "telephone": words("A191 A192"),
                "foreign": words("A201 A202"),
            }
        ),
    ),
    label="risk",
    classes=("good", "bad"),
)


def _load_german(paths: list[Path]) -> pd.DataFrame:
    text = paths[0].read_text(encoding="ascii")
    frame = csv(text, header=None, names=list(_GERMAN_NAMES), sep=r"\s+")
    frame["risk"] = frame["risk"].map({"1": "good", "2": "bad"})
    return with_numbers(frame, _GERMAN_SCHEMA)


GERMAN = DataSet(
    name="german-credit",
    title="Statlog German credit (Hofmann 1994)",
    sectors=("bank",),
    record="client",
    rows=1000,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/144/statlog+german+credit+data",
    folder="german_credit",
    files=(File("german.data", f"{UCI_FILES}/statlog/german/german.data", None),),
    schema=_GERMAN_SCHEMA,
    load=_load_german,
    notes="no hash is known beforehand: the first download's is written beside it and holds from then on",
)
