"""The named sets: their files, schemas and loaders.

Bounds are round numbers from each set's public documentation or from what is plausible in the field (a
clinical range, a credit limit), never statistics of the records at hand; values beyond them are clipped.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.data.schema import Bounds, Column, Schema, categories, numbers
from fedsim.data.sources import DataSet, File, unpack
from fedsim.data.table import numeric

_UCI = "https://archive.ics.uci.edu"
_UCI_FILES = f"{_UCI}/ml/machine-learning-databases"
CC_BY_4 = "CC BY 4.0"


def _codes(low: int, high: int) -> tuple[str, ...]:
    return tuple(str(code) for code in range(low, high + 1))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _csv(content: str | bytes, missing: Iterable[str] = (), **options: object) -> pd.DataFrame:
    """Read a headed CSV as text; only ``missing`` spellings become missing."""
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    return pd.read_csv(
        io.StringIO(text), dtype=object, keep_default_na=False, na_values=list(missing), **options
    )  # type: ignore[call-overload]


def _with_numbers(frame: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Return the schema's columns and keys, numbers as float64."""
    keys = [name for name in (schema.label, schema.party, schema.person) if name is not None]
    columns = {
        column.name: numeric(frame[column.name]) if column.kind == "number" else frame[column.name]
        for column in schema.columns
    }
    return pd.DataFrame({**columns, **{name: frame[name] for name in keys}})


# --- diabetes-progression -------------------------------------------------------------------------------

# The median of the 442 published progression scores: a constant of this public set, which defines the task.
PROGRESSION_MEDIAN = 140.5

_PROGRESSION_BOUNDS: dict[str, Bounds] = {
    "age": (18, 90),  # years
    "bmi": (15, 45),  # kg/m²
    "bp": (60, 140),  # mean arterial pressure, mmHg
    "s1": (100, 300),  # total cholesterol, mg/dl
    "s2": (30, 230),  # LDL cholesterol, mg/dl
    "s3": (20, 100),  # HDL cholesterol, mg/dl
    "s4": (1.5, 9),  # total cholesterol / HDL
    "s5": (3, 6.5),  # natural logarithm of triglycerides in mg/dl
    "s6": (55, 145),  # fasting glucose, mg/dl
}


def _load_progression(paths: list[Path]) -> pd.DataFrame:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(as_frame=True, scaled=False)
    frame = bunch.data.copy()
    frame["sex"] = frame["sex"].astype(int).astype(str).astype(object)
    frame["progression"] = np.where(bunch.target > PROGRESSION_MEDIAN, "above", "below").astype(object)
    return frame


_PROGRESSION = DataSet(
    name="diabetes-progression",
    title="Diabetes progression after one year (Efron et al. 2004)",
    sectors=("hospital",),
    record="patient",
    rows=442,
    licence="BSD-3-Clause (as part of scikit-learn)",
    origin="https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
    schema=Schema(
        columns=(*numbers(_PROGRESSION_BOUNDS), *categories({"sex": ("1", "2")})),
        label="progression",
        classes=("below", "above"),
    ),
    load=_load_progression,
    notes=f"progression above {PROGRESSION_MEDIAN}, the published median; a hard task that is easily overfit",
)

# --- breast-cancer --------------------------------------------------------------------------------------

# Minimum and maximum of each measure as the set's own documentation prints them, rounded outwards.
_CELL_BOUNDS: dict[str, tuple[Bounds, Bounds, Bounds]] = {  # mean, standard error, worst
    "radius": ((6, 29), (0.1, 3), (7, 37)),
    "texture": ((9, 40), (0.3, 5), (12, 50)),
    "perimeter": ((43, 189), (0.7, 22), (50, 252)),
    "area": ((143, 2501), (6, 543), (185, 4254)),
    "smoothness": ((0.05, 0.17), (0.001, 0.04), (0.07, 0.23)),
    "compactness": ((0.01, 0.35), (0.002, 0.14), (0.02, 1.06)),
    "concavity": ((0, 0.43), (0, 0.4), (0, 1.26)),
    "concave points": ((0, 0.21), (0, 0.06), (0, 0.3)),
    "symmetry": ((0.1, 0.31), (0.007, 0.08), (0.15, 0.67)),
    "fractal dimension": ((0.04, 0.1), (0.0008, 0.03), (0.05, 0.21)),
}


def _cell_columns() -> tuple[Column, ...]:
    bounds: dict[str, Bounds] = {}
    for measure, (mean, error, worst) in _CELL_BOUNDS.items():
        bounds |= {f"mean {measure}": mean, f"{measure} error": error, f"worst {measure}": worst}
    return numbers(bounds)


def _load_breast_cancer(paths: list[Path]) -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer(as_frame=True)
    names = bunch.target_names.astype(object)
    return bunch.data.assign(diagnosis=names[bunch.target.to_numpy()])


_BREAST_CANCER = DataSet(
    name="breast-cancer",
    title="Breast Cancer Wisconsin (Diagnostic)",
    sectors=("hospital",),
    record="patient",
    rows=569,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/17/breast+cancer+wisconsin+diagnostic",
    schema=Schema(_cell_columns(), label="diagnosis", classes=("benign", "malignant")),
    load=_load_breast_cancer,
    notes="30 measures of cell nuclei; an easy task on which models overfit little",
)

# --- digits, mnist --------------------------------------------------------------------------------------


def _pixel_schema(side: int, white: float) -> Schema:
    columns = numbers({f"pixel {number}": (0, white) for number in range(side * side)})
    return Schema(columns, label="digit", classes=_codes(0, 9), image=(1, side, side))


def _pixel_frame(images: np.ndarray, digits: np.ndarray, schema: Schema) -> pd.DataFrame:
    frame = pd.DataFrame(images.reshape(len(images), -1), columns=list(schema.names))
    frame[schema.label] = digits.astype(str).astype(object)
    return frame


def _load_digits(paths: list[Path]) -> pd.DataFrame:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _pixel_frame(bunch.images, bunch.target, _DIGITS.schema)


_DIGITS = DataSet(
    name="digits",
    title="Optical recognition of handwritten digits (8 × 8)",
    sectors=("bank",),
    record="image",
    rows=1797,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/80/optical+recognition+of+handwritten+digits",
    schema=_pixel_schema(8, 16),
    load=_load_digits,
    notes="the test part, as scikit-learn carries it; small images for small CNNs",
)


def _idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes: a magic number, the sizes (big-endian uint32), the values."""
    content = unpack(path)
    sizes = np.frombuffer(content, dtype=">u4", count=content[3], offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(sizes.astype(int))


def _load_mnist(paths: list[Path]) -> pd.DataFrame:
    train_images, train_digits, test_images, test_digits = map(_idx, paths)
    images = np.concatenate([train_images, test_images])
    return _pixel_frame(images, np.concatenate([train_digits, test_digits]), _MNIST.schema)


def _mnist_file(name: str, packed: str, content: str) -> File:
    return File(f"{name}.gz", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", packed, content)


_MNIST = DataSet(
    name="mnist",
    title="MNIST handwritten digits (28 × 28)",
    sectors=("bank",),
    record="image",
    rows=70_000,
    licence="CC BY-SA 3.0",
    origin="http://yann.lecun.com/exdb/mnist",
    folder="mnist",
    files=(
        _mnist_file(
            "train-images-idx3-ubyte",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        _mnist_file(
            "train-labels-idx1-ubyte",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        _mnist_file(
            "t10k-images-idx3-ubyte",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        _mnist_file(
            "t10k-labels-idx1-ubyte",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    schema=_pixel_schema(28, 255),
    load=_load_mnist,
    notes="training and test images in one table; set data.max_records for a quick run",
)

# --- heart-disease --------------------------------------------------------------------------------------

_HEART_HASHES = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
_HEART_NAMES = _words("age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal num")
_HEART_SCHEMA = Schema(
    columns=(
        *numbers(
            {
                "age": (20, 90),  # years
                "trestbps": (80, 200),  # resting systolic blood pressure, mmHg
                "chol": (100, 400),  # serum cholesterol, mg/dl
                "thalach": (60, 210),  # highest heart rate under exercise, 1/min
                "oldpeak": (-2, 6),  # ST depression under exercise, mm
                "ca": (0, 3),  # vessels coloured by fluoroscopy
            },
            missing=("trestbps", "chol", "thalach", "oldpeak", "ca"),
        ),
        *categories(
            {
                "sex": ("0", "1"),  # 1 male
                "cp": _codes(1, 4),  # chest pain: typical, atypical, non-anginal, none
                "fbs": ("0", "1"),  # fasting glucose above 120 mg/dl
                "restecg": _codes(0, 2),
                "exang": ("0", "1"),  # angina under exercise
                "slope": _codes(1, 3),
                "thal": ("3", "6", "7"),  # normal, fixed defect, reversible defect
            }
        ),
    ),
    label="disease",
    classes=("absent", "present"),
    party="hospital",
)


def _load_heart(paths: list[Path]) -> pd.DataFrame:
    parts = []
    for hospital, path in zip(_HEART_HASHES, paths, strict=True):
        text = path.read_text(encoding="ascii")
        part = _csv(text, missing=("?", "-9", "-9.0"), header=None, names=list(_HEART_NAMES))
        parts.append(part.assign(hospital=hospital))
    frame = pd.concat(parts, ignore_index=True)
    # Nobody has a cholesterol or a blood pressure of 0: it stands for 'not measured'.
    for name in ("chol", "trestbps"):
        frame[name] = frame[name].mask(numeric(frame[name]) == 0, None)
    frame["disease"] = np.where(numeric(frame["num"]) > 0, "present", "absent").astype(object)
    return _with_numbers(frame, _HEART_SCHEMA)


_HEART = DataSet(
    name="heart-disease",
    title="Heart Disease: Cleveland, Budapest, Zurich/Basel, Long Beach (Detrano et al. 1989)",
    sectors=("hospital",),
    record="patient",
    rows=920,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/45/heart+disease",
    folder="heart_disease_uci",
    files=tuple(
        File(
            f"processed.{hospital}.data",
            f"{_UCI_FILES}/heart-disease/processed.{hospital}.data",
            known_sha256,
        )
        for hospital, known_sha256 in _HEART_HASHES.items()
    ),
    schema=_HEART_SCHEMA,
    load=_load_heart,
    notes="four real hospitals as parties; much is missing outside Cleveland; Switzerland has 8 negatives",
)

# --- diabetes-130 ---------------------------------------------------------------------------------------

_SPECIALTIES = _words(
    """AllergyandImmunology Anesthesiology Anesthesiology-Pediatric Cardiology Cardiology-Pediatric DCPTEAM
    Dentistry Dermatology Emergency/Trauma Endocrinology Endocrinology-Metabolism Family/GeneralPractice
    Gastroenterology Gynecology Hematology Hematology/Oncology Hospitalist InfectiousDiseases InternalMedicine
    Nephrology Neurology Neurophysiology Obsterics&Gynecology-GynecologicOnco Obstetrics
    ObstetricsandGynecology Oncology Ophthalmology Orthopedics Orthopedics-Reconstructive Osteopath
    Otolaryngology OutreachServices Pathology Pediatrics Pediatrics-AllergyandImmunology
    Pediatrics-CriticalCare Pediatrics-EmergencyMedicine Pediatrics-Endocrinology
    Pediatrics-Hematology-Oncology Pediatrics-InfectiousDiseases Pediatrics-Neurology Pediatrics-Pulmonology
    Perinatology PhysicalMedicineandRehabilitation PhysicianNotFound Podiatry Proctology Psychiatry
    Psychiatry-Addictive Psychiatry-Child/Adolescent Psychology Pulmonology Radiologist Radiology Resident
    Rheumatology Speech SportsMedicine Surgeon Surgery-Cardiovascular Surgery-Cardiovascular/Thoracic
    Surgery-Colon&Rectal Surgery-General Surgery-Maxillofacial Surgery-Neuro Surgery-Pediatric
    Surgery-Plastic Surgery-PlasticwithinHeadandNeck Surgery-Thoracic Surgery-Vascular SurgicalSpecialty
    Urology"""
)
_DRUGS = _words(
    """metformin repaglinide nateglinide chlorpropamide glimepiride acetohexamide glipizide glyburide
    tolbutamide pioglitazone rosiglitazone acarbose miglitol troglitazone tolazamide examide citoglipton
    insulin glyburide-metformin glipizide-metformin glimepiride-pioglitazone metformin-rosiglitazone
    metformin-pioglitazone"""
)
# Groups of ICD-9 codes, Strack et al. 2014, Table 2; the rest is 'other'. Half-open ranges of whole codes.
_DIAGNOSES: dict[str, tuple[tuple[int, int], ...]] = {
    "circulatory": ((390, 460), (785, 786)),
    "respiratory": ((460, 520), (786, 787)),
    "digestive": ((520, 580), (787, 788)),
    "diabetes": ((250, 251),),
    "injury": ((800, 1000),),
    "musculoskeletal": ((710, 740),),
    "genitourinary": ((580, 630), (788, 789)),
    "neoplasms": ((140, 240),),
}
_ENCOUNTER_SCHEMA = Schema(
    columns=(
        *numbers(
            {
                "time_in_hospital": (1, 14),  # days; longer stays are not in the set
                "num_lab_procedures": (1, 100),
                "num_procedures": (0, 6),
                "num_medications": (1, 50),
                "number_outpatient": (0, 5),  # visits in the year before
                "number_emergency": (0, 5),
                "number_inpatient": (0, 6),
                "number_diagnoses": (1, 16),
            }
        ),
        *categories(
            {
                "race": _words("AfricanAmerican Asian Caucasian Hispanic Other"),
                "gender": ("Female", "Male"),
                "age": tuple(f"[{low}-{low + 10})" for low in range(0, 100, 10)),
                "weight": (*(f"[{low}-{low + 25})" for low in range(0, 200, 25)), ">200"),
                "admission_type_id": _codes(1, 8),
                "discharge_disposition_id": _codes(1, 30),
                "admission_source_id": _codes(1, 26),
                "payer_code": _words("BC CH CM CP DM FR HM MC MD MP OG OT PO SI SP UN WC"),
                "medical_specialty": _SPECIALTIES,
                **dict.fromkeys(("diag_1", "diag_2", "diag_3"), (*_DIAGNOSES, "other")),
                "max_glu_serum": _words("None Norm >200 >300"),
                "A1Cresult": _words("None Norm >7 >8"),
                **{drug: _words("No Steady Up Down") for drug in _DRUGS},
                "change": ("No", "Ch"),
                "diabetesMed": ("No", "Yes"),
            }
        ),
    ),
    label="readmitted",
    classes=("no", "yes"),
    person="patient_nbr",
)


def _diagnosis_group(code: object) -> str | None:
    """Return the group of an ICD-9 code such as '250.83' or 'V27'; None where it is missing."""
    if not isinstance(code, str):
        return None
    whole = code.split(".")[0]
    if not whole.isdigit():
        return "other"  # supplementary codes E… and V…
    inside = (name for name, ranges in _DIAGNOSES.items() if any(a <= int(whole) < b for a, b in ranges))
    return next(inside, "other")


def _load_encounters(paths: list[Path]) -> pd.DataFrame:
    frame = _csv(unpack(paths[0], _DIABETES_130.files[0].member), missing=("?",))
    for name in ("diag_1", "diag_2", "diag_3"):
        groups = {code: _diagnosis_group(code) for code in frame[name].unique()}
        frame[name] = frame[name].map(groups)
    frame["readmitted"] = np.where(frame["readmitted"] == "NO", "no", "yes").astype(object)
    return _with_numbers(frame, _ENCOUNTER_SCHEMA)


_DIABETES_130 = DataSet(
    name="diabetes-130",
    title="Diabetes, 130 US hospitals, 1999–2008 (Strack et al. 2014)",
    sectors=("hospital",),
    record="encounter",
    rows=101_766,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/296/diabetes+130-us+hospitals+for+years+1999-2008",
    folder="diabetes130",
    files=(
        File(
            "dataset_diabetes.zip",
            f"{_UCI_FILES}/00296/dataset_diabetes.zip",
            "3a17a3b55b6dd4a1926703185c0ad8e2ed30bc8e2f9b927cdd1000b733d1de8e",
            "0689e7ec031237dc63031b938805c48377748761a3b26acab621567afa24df97",
            ("dataset_diabetes/diabetic_data.csv",),
        ),
    ),
    schema=_ENCOUNTER_SCHEMA,
    load=_load_encounters,
    notes=(
        "readmitted at all, against not; 71,518 persons with one or more encounters, kept on one side; "
        "no hospital is named, but data.party = 'payer_code' or 'medical_specialty' is a proxy for one"
    ),
)

# --- credit-default -------------------------------------------------------------------------------------

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
        *categories({"SEX": ("1", "2"), "EDUCATION": _codes(0, 6), "MARRIAGE": _codes(0, 3)}),
    ),
    label="default.payment.next.month",
    classes=("0", "1"),
)


def _load_credit(paths: list[Path]) -> pd.DataFrame:
    return _with_numbers(_csv(paths[0].read_bytes()), _CREDIT_SCHEMA)


_CREDIT = DataSet(
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
    notes=f"first published at {_UCI}/dataset/350 as a spreadsheet; the CSV edition needs a login",
)

# --- bank-marketing -------------------------------------------------------------------------------------

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
                "job": _words(
                    "admin. blue-collar entrepreneur housemaid management retired self-employed services "
                    "student technician unemployed unknown"
                ),
                "marital": _words("divorced married single"),
                "education": _words("primary secondary tertiary unknown"),
                "default": ("no", "yes"),
                "housing": ("no", "yes"),
                "loan": ("no", "yes"),
                "contact": _words("cellular telephone unknown"),
                "month": _words("jan feb mar apr may jun jul aug sep oct nov dec"),
                "poutcome": _words("failure other success unknown"),
            }
        ),
    ),
    label="y",
    classes=("no", "yes"),
)


def _load_marketing(paths: list[Path]) -> pd.DataFrame:
    frame = _csv(unpack(paths[0], _MARKETING.files[0].member), sep=";")
    frame["pdays"] = frame["pdays"].mask(frame["pdays"] == "-1", None)
    return _with_numbers(frame, _MARKETING_SCHEMA)


_MARKETING = DataSet(
    name="bank-marketing",
    title="Bank Marketing, Portugal (Moro et al. 2011), bank-full",
    sectors=("bank",),
    record="client",
    rows=45_211,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/222/bank+marketing",
    folder="bank_marketing",
    files=(
        File(
            "bank+marketing.zip",
            f"{_UCI}/static/public/222/bank+marketing.zip",
            "78ec0430a915e99836a533b79bdf635ee27e86fbd348bcdb4080f572b1a24aee",
            "d1513ec63b385506f7cfce9f2c5caa9fe99e7ba4e8c3fa264b3aaf0f849ed32d",
            ("bank.zip", "bank-full.csv"),
        ),
    ),
    schema=_MARKETING_SCHEMA,
    load=_load_marketing,
    notes="'duration' is known only after the call; data.ignore = ['duration'] for a realistic predictor",
)

# --- german-credit --------------------------------------------------------------------------------------

_GERMAN_NAMES = _words(
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
                "status": _words("A11 A12 A13 A14"),
                "history": _words("A30 A31 A32 A33 A34"),
                "purpose": _words("A40 A41 A42 A43 A44 A45 A46 A47 A48 A49 A410"),
                "savings": _words("A61 A62 A63 A64 A65"),
                "employment": _words("A71 A72 A73 A74 A75"),
                "personal": _words("A91 A92 A93 A94 A95"),
                "debtors": _words("A101 A102 A103"),
                "property": _words("A121 A122 A123 A124"),
                "plans": _words("A141 A142 A143"),
                "housing": _words("A151 A152 A153"),
                "job": _words("A171 A172 A173 A174"),
                "telephone": _words("A191 A192"),
                "foreign": _words("A201 A202"),
            }
        ),
    ),
    label="risk",
    classes=("good", "bad"),
)


def _load_german(paths: list[Path]) -> pd.DataFrame:
    text = paths[0].read_text(encoding="ascii")
    frame = _csv(text, header=None, names=list(_GERMAN_NAMES), sep=r"\s+")
    frame["risk"] = frame["risk"].map({"1": "good", "2": "bad"})
    return _with_numbers(frame, _GERMAN_SCHEMA)


_GERMAN = DataSet(
    name="german-credit",
    title="Statlog German credit (Hofmann 1994)",
    sectors=("bank",),
    record="client",
    rows=1000,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/144/statlog+german+credit+data",
    folder="german_credit",
    files=(File("german.data", f"{_UCI_FILES}/statlog/german/german.data", None),),
    schema=_GERMAN_SCHEMA,
    load=_load_german,
    notes="no hash is known beforehand: the first download's is written beside it and holds from then on",
)

# --- adult ----------------------------------------------------------------------------------------------

_ADULT_NAMES = _words(
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
                "workclass": _words(
                    """Federal-gov Local-gov Never-worked Private Self-emp-inc Self-emp-not-inc State-gov
                    Without-pay"""
                ),
                "education": _words(
                    """Preschool 1st-4th 5th-6th 7th-8th 9th 10th 11th 12th HS-grad Some-college Assoc-voc
                    Assoc-acdm Bachelors Masters Prof-school Doctorate"""
                ),
                "marital-status": _words(
                    """Divorced Married-AF-spouse Married-civ-spouse Married-spouse-absent Never-married
                    Separated Widowed"""
                ),
                "occupation": _words(
                    """Adm-clerical Armed-Forces Craft-repair Exec-managerial Farming-fishing
                    Handlers-cleaners Machine-op-inspct Other-service Priv-house-serv Prof-specialty
                    Protective-serv Sales Tech-support Transport-moving"""
                ),
                "relationship": _words("Husband Not-in-family Other-relative Own-child Unmarried Wife"),
                "race": _words("Amer-Indian-Eskimo Asian-Pac-Islander Black Other White"),
                "sex": ("Female", "Male"),
                "native-country": _words(
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
        _csv(
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
    return _with_numbers(frame, _ADULT_SCHEMA)


_ADULT = DataSet(
    name="adult",
    title="Adult / Census Income, USA 1994",
    sectors=("employer",),
    record="employee",
    rows=48_842,
    licence=CC_BY_4,
    origin=f"{_UCI}/dataset/2/adult",
    folder="adult",
    files=(
        File(
            "adult.data",
            f"{_UCI_FILES}/adult/adult.data",
            "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        ),
        File(
            "adult.test",
            f"{_UCI_FILES}/adult/adult.test",
            "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        ),
    ),
    schema=_ADULT_SCHEMA,
    load=_load_adult,
    notes="training and test part in one table; whether a person earns more than 50,000 US$ a year",
)

# --- location-30 ----------------------------------------------------------------------------------------

_PLACES = 446
_LOCATION_SCHEMA = Schema(
    # One indicator each: 1 where the person was there; not having been there is all zeros.
    columns=categories({f"place {number}": ("1",) for number in range(1, _PLACES + 1)}),
    label="cluster",
    classes=_codes(1, 30),
)


def _load_location(paths: list[Path]) -> pd.DataFrame:
    content = unpack(paths[0], _LOCATION.files[0].member).decode("ascii")
    return _csv(content, header=None, names=[_LOCATION_SCHEMA.label, *_LOCATION_SCHEMA.names])


_LOCATION = DataSet(
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

SETS: dict[str, DataSet] = {
    data.name: data
    for data in (
        _PROGRESSION,
        _BREAST_CANCER,
        _DIGITS,
        _HEART,
        _DIABETES_130,
        _CREDIT,
        _MARKETING,
        _GERMAN,
        _ADULT,
        _LOCATION,
        _MNIST,
    )
}
