#!/usr/bin/env bash
# A whole run of mgi-small on TCGA-LGG in one sitting on two cores, timed from files to report.
#
#   bash tools/sitting.sh DATA OUT        (DATA: folder of tcga_lgg; OUT: new folder)
#
# Four folds side by side, one core each, two after each other; then the fifth, the final model and the report on both.
# Two processes of one thread do more than one of two, which waits for itself wherever a step's work cannot be shared.
# The run is OUT/tcga_lgg; its time is docs/results/tcga_lgg/sitting.json.
set -euo pipefail
export data=$1 out=$2
run() { .venv/bin/medform run mgi-small --cohort cohorts/tcga_lgg.yaml --root "$data" --store "$out/store" "$@"; }
lane() { # CORE NAME FOLDS...
  export OMP_NUM_THREADS=1
  core=$1 name=$2
  shift 2
  taskset -cp "$core" "$BASHPID" >/dev/null
  run -o "$out/$name" "$@" >"$out/$name.log" 2>&1
}

mkdir "$out"
begun=$(date +%s)
.venv/bin/medform ingest cohorts/tcga_lgg.yaml --root "$data" -o "$out/store" --workers 2
lane 0 first --fold 0 --fold 2 &
lane 1 second --fold 1 --fold 3 &
wait -n
wait -n
.venv/bin/python tools/join_folds.py "$out/tcga_lgg" "$out/first" "$out/second"
run -o "$out/tcga_lgg" --resume
.venv/bin/python tools/sitting.py "$out/tcga_lgg" "$begun" "$(date +%s)" >docs/results/tcga_lgg/sitting.json
