"""Named data sets of patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data.schema import Bounds, Column, Schema, categories, numbers
from fedsim.core.data.sets.reading import CC_BY_4, UCI, UCI_FILES, codes, csv, with_numbers, words
from fedsim.core.data.sources import DataSet, File, unpack
from fedsim.core.data.table import numeric

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


PROGRESSION = DataSet(
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


BREAST_CANCER = DataSet(
    name="breast-cancer",
    title="Breast Cancer Wisconsin (Diagnostic)",
    sectors=("hospital",),
    record="patient",
    rows=569,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/17/breast+cancer+wisconsin+diagnostic",
    schema=Schema(_cell_columns(), label="diagnosis", classes=("benign", "malignant")),
    load=_load_breast_cancer,
    notes="30 measures of cell nuclei; an easy task on which models overfit little",
)


_HEART_HASHES = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
_HEART_NAMES = words("age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal num")
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
                "cp": codes(1, 4),  # chest pain: typical, atypical, non-anginal, none
                "fbs": ("0", "1"),  # fasting glucose above 120 mg/dl
                "restecg": codes(0, 2),
                "exang": ("0", "1"),  # angina under exercise
                "slope": codes(1, 3),
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
        part = csv(text, missing=("?", "-9", "-9.0"), header=None, names=list(_HEART_NAMES))
        parts.append(part.assign(hospital=hospital))
    frame = pd.concat(parts, ignore_index=True)
    # Nobody has a cholesterol or a blood pressure of 0: it stands for 'not measured'.
    for name in ("chol", "trestbps"):
        frame[name] = frame[name].mask(numeric(frame[name]) == 0, None)
    frame["disease"] = np.where(numeric(frame["num"]) > 0, "present", "absent").astype(object)
    return with_numbers(frame, _HEART_SCHEMA)


HEART = DataSet(
    name="heart-disease",
    title="Heart Disease: Cleveland, Budapest, Zurich/Basel, Long Beach (Detrano et al. 1989)",
    sectors=("hospital",),
    record="patient",
    rows=920,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/45/heart+disease",
    folder="heart_disease_uci",
    files=tuple(
        File(
            f"processed.{hospital}.data",
            f"{UCI_FILES}/heart-disease/processed.{hospital}.data",
            known_sha256,
        )
        for hospital, known_sha256 in _HEART_HASHES.items()
    ),
    schema=_HEART_SCHEMA,
    load=_load_heart,
    notes="four real hospitals as parties; much is missing outside Cleveland; Switzerland has 8 negatives",
)


_SPECIALTIES = words(
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
_DRUGS = words(
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
                "race": words("AfricanAmerican Asian Caucasian Hispanic Other"),
                "gender": ("Female", "Male"),
                "age": tuple(f"[{low}-{low + 10})" for low in range(0, 100, 10)),
                "weight": (*(f"[{low}-{low + 25})" for low in range(0, 200, 25)), ">200"),
                "admission_type_id": codes(1, 8),
                "discharge_disposition_id": codes(1, 30),
                "admission_source_id": codes(1, 26),
                "payer_code": words("BC CH CM CP DM FR HM MC MD MP OG OT PO SI SP UN WC"),
                "medical_specialty": _SPECIALTIES,
                **dict.fromkeys(("diag_1", "diag_2", "diag_3"), (*_DIAGNOSES, "other")),
                "max_glu_serum": words("None Norm >200 >300"),
                "A1Cresult": words("None Norm >7 >8"),
                **{drug: words("No Steady Up Down") for drug in _DRUGS},
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
    frame = csv(unpack(paths[0], DIABETES_130.files[0].member), missing=("?",))
    for name in ("diag_1", "diag_2", "diag_3"):
        groups = {code: _diagnosis_group(code) for code in frame[name].unique()}
        frame[name] = frame[name].map(groups)
    frame["readmitted"] = np.where(frame["readmitted"] == "NO", "no", "yes").astype(object)
    return with_numbers(frame, _ENCOUNTER_SCHEMA)


DIABETES_130 = DataSet(
    name="diabetes-130",
    title="Diabetes, 130 US hospitals, 1999–2008 (Strack et al. 2014)",
    sectors=("hospital",),
    record="encounter",
    rows=101_766,
    licence=CC_BY_4,
    origin=f"{UCI}/dataset/296/diabetes+130-us+hospitals+for+years+1999-2008",
    folder="diabetes130",
    files=(
        File(
            "dataset_diabetes.zip",
            f"{UCI_FILES}/00296/dataset_diabetes.zip",
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
