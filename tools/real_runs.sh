#!/usr/bin/env bash
# The real runs of docs/results.md: tools/real_runs.sh DATA RUNS [NAME ...]   (resumable; names below, default all)
# DATA holds nsclc_ct, ct_ich, dicom_ct and tcga_lgg; RUNS gets a run folder each. Afterwards: python tools/results.py RUNS
set -euo pipefail
data=$1 runs=$2
shift 2
cd "$(dirname "$0")/.."
mkdir -p "$runs"

run() { # NAME RECIPE COHORT SET [option ...]
  local name=$1 recipe=$2 cohort=$3 set=$4
  shift 4
  .venv/bin/medform run "$recipe" --cohort "cohorts/$cohort.yaml" --root "$data/$set" -o "$runs/$name" "$@" \
    $([ -f "$runs/$name/run.json" ] && echo --resume) >"$runs/$name.log" 2>&1
}

plain='variants={vit_no_genes: {stages.segment.objective.gene_dropout: 1.0}}'
all="nsclc_ct ct_ich nsclc_ct_readings nsclc_ct_paper dicom_ct tcga_lgg tcga_lgg_seed1 tcga_lgg_seed2 nsclc_ct_trimodal"
for name in "${@:-$all tcga_lgg_trimodal}"; do
  for one in $name; do
    case $one in
      nsclc_ct) run nsclc_ct medform-small nsclc_ct nsclc_ct ;;
      nsclc_ct_readings) run nsclc_ct_readings medform-small nsclc_ct_readings nsclc_ct ;;
      ct_ich) run ct_ich medform-small ct_ich ct_ich ;;
      # the paper's second stage on features of its own ResNet-50 after 50 steps of 16 views: rows say encoder_untrained;
      # the supports that need six more alignments a model (11.5 M parameters each) are left out
      nsclc_ct_paper) run nsclc_ct_paper medform-paper nsclc_ct nsclc_ct --set 'stages.pretrain.budget={steps: 50}' \
        --set stages.pretrain.batch=8 --set 'variants={image_only: {embedding: [image_only]},
          attention_unaligned: {stages.align.budget: {steps: 0}, embedding: [bag]},
          shuffled_pairs: {stages.align.pairing: shuffled}}' ;;
      tcga_lgg) run tcga_lgg mgi-small tcga_lgg tcga_lgg ;;
      # other seeds, of the models that the question of genes needs; the ablations of mgi-small once
      tcga_lgg_seed1) run tcga_lgg_seed1 mgi-small tcga_lgg tcga_lgg --set 'seeds=[1]' --set "$plain" ;;
      tcga_lgg_seed2) run tcga_lgg_seed2 mgi-small tcga_lgg tcga_lgg --set 'seeds=[2]' --set "$plain" \
        --set 'ablate=[mgi_scan_intensity,mgi_slice_split,mgi_film,mgi_scratch,mgi_pure_vit,mgi_gene_mlp,
          mgi_gene_transformer,mgi_unaligned]' ;;
      tcga_lgg_trimodal) run tcga_lgg_trimodal trimodal tcga_lgg tcga_lgg ;;
      nsclc_ct_trimodal) run nsclc_ct_trimodal trimodal nsclc_ct nsclc_ct ;;
      dicom_ct)
        .venv/bin/medform check "$data/dicom_ct" --json >"$runs/dicom_ct.check.json"
        .venv/bin/medform ingest cohorts/dicom_ct.yaml --root "$data/dicom_ct" -o "$runs/dicom_ct.store"
        .venv/bin/medform embed "$runs/dicom_ct.store" -o "$runs/dicom_ct.embeddings.parquet"
        ;;
    esac
  done
done
