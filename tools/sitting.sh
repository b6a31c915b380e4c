#!/usr/bin/env bash
# A whole run of mgi-small on TCGA-LGG in one sitting on two cores, timed from files to report.
#
#   bash tools/sitting.sh DATA OUT        (DATA: folder of tcga_lgg; OUT: new folder)
#
# Four folds side by side, one core each, two after each other; then the fifth, the final model and the report on both.
# One process shares a step's work between two cores at 1.6 times the speed of one; two processes work at twice.
set -euo pipefail
data=$1 out=$2
run() { .venv/bin/medform run mgi-small --cohort cohorts/tcga_lgg.yaml --root "$data" --store "$out/store" "$@"; }

mkdir "$out"
date -u +%FT%TZ >"$out/begun"
.venv/bin/medform ingest cohorts/tcga_lgg.yaml --root "$data" -o "$out/store" --workers 2
OMP_NUM_THREADS=1 taskset -c 0 bash -c "$(declare -f run); data=$data out=$out; run -o $out/first --fold 0 --fold 2" >"$out/first.log" 2>&1 &
OMP_NUM_THREADS=1 taskset -c 1 bash -c "$(declare -f run); data=$data out=$out; run -o $out/second --fold 1 --fold 3" >"$out/second.log" 2>&1 &
wait -n; wait -n
.venv/bin/python tools/join_folds.py "$out/tcga_lgg" "$out/first" "$out/second"
run -o "$out/tcga_lgg" --resume
date -u +%FT%TZ >"$out/ended"
