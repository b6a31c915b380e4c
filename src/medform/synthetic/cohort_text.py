"""The cohort file that comes with the synthetic hospital: runs as it is and shows every kind of column."""

from __future__ import annotations

__all__ = ["COHORT_FILE"]

COHORT_FILE = """\
name: phantom
licence: "CC0-1.0"                    # invented data
images:
  layout: dicom
  path: images
  unit: HU
  window_hu: [-200, 300]
  select:                             # where a patient has several series: which one is meant
    modality: CT
    description: SOFT TISSUE
    rule: first_visit
tables:
  clinical: {path: clinical.csv, patient_id: patient_id, missing: ["", "NA", "n/a"]}
columns:
  "age (years)":    {role: feature, type: number, unit: year, known_at: before_scan}
  sex:              {role: feature, type: category, known_at: before_scan}
  "weight (kg)":    {role: feature, type: number, unit: kg, known_at: before_scan}
  smoking:          {role: feature, type: category, known_at: before_scan}
  marker:           {role: feature, type: number, unit: U/mL, decimal: ",", known_at: before_scan}
  marker_unit:      {role: ignore}
  "ldh (U/L)":      {role: feature, type: number, unit: U/L, sentinels: [999], known_at: before_scan}
  scan_date:        {role: ignore, type: date, format: "%Y-%m-%d"}
  room:             {role: feature, type: number, known_at: before_scan}   # means nothing, on purpose
  scanner:          {role: group, type: category}
  stage:            {role: label, type: ordinal, levels: [I, II, III, IV]}
  malignant:        {role: label, type: boolean}
  chemo_cycles:     {role: outcome, type: number, known_at: follow_up}     # gives the label away, on purpose
  follow_up_months: {role: time, type: number, unit: month}
  died:             {role: outcome, type: boolean}
tasks:
  - {name: malignant, label: clinical.malignant, predicted_at: scan, primary: true}
  - {name: late_stage, label: clinical.stage, predicted_at: scan, positive: [III, IV]}
genes: {path: genes.csv, orientation: patients_in_rows, scale: log2, id_kind: symbol}
masks: {path: masks, pattern: "{patient}.nii.gz", values: {lesion: [1]}}
survival: {time: follow_up_months, event: died}
splits: {name: main, folds: 5, validation: 0.15, stratify: [malignant], seed: 7}
"""
