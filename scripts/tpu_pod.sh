#!/bin/bash
# One run on a Cloud TPU pod slice, on all of its hosts. From a machine that stays up (in tmux), with gcloud:
#
#   scripts/tpu_pod.sh create  NAME ZONE TYPE VERSION     a spot slice, e.g. v5litepod-16 v2-alpha-tpuv5-lite
#   scripts/tpu_pod.sh install NAME ZONE REPOSITORY       clones and installs it on every host
#   scripts/tpu_pod.sh run     NAME ZONE --config=configs/ic_resnet50_wld.py --workdir=/shared/run ...
#   scripts/tpu_pod.sh stop    NAME ZONE                  SIGTERM: the run saves and ends
#   scripts/tpu_pod.sh delete  NAME ZONE
#
# `run` starts the same command again as long as it makes progress: a run that stops goes on where it saved. The
# workdir is on a file system that all hosts mount. DRY_RUN=1 prints the commands and runs none.
set -euo pipefail

usage() {
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

call() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_hosts() {
  call gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

(( $# >= 3 )) || usage
verb=$1 name=$2 zone=$3
shift 3
case "$verb" in
  create)
    (( $# == 2 )) || usage
    call gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
      --accelerator-type="$1" --runtime-version="$2" --spot
    ;;
  install)
    (( $# == 1 )) || usage
    on_all_hosts "$(printf 'git clone %q bionets_jax && cd bionets_jax && make install JAX=tpu' "$1")"
    ;;
  run)
    (( $# >= 1 )) || usage
    arguments=$(printf '%q ' "$@")
    # Three failures within ten minutes each are no pre-emption.
    failures=0
    while (( failures < 3 )); do
      started=$SECONDS
      # exec: signals reach Python, and its exit status is that of ssh.
      if on_all_hosts "cd bionets_jax && exec .venv/bin/python launch.py --distributed=auto $arguments"; then
        exit 0
      fi
      if (( SECONDS - started < 600 )); then failures=$((failures + 1)); else failures=0; fi
      echo "$(date): stopped; starting again" >&2
      sleep 30
    done
    echo "error: three failures in a row; see the output above" >&2
    exit 1
    ;;
  stop)
    on_all_hosts "pkill -TERM -f '^[^ ]*python launch.py --distributed=auto' || true"
    ;;
  delete)
    call gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
    ;;
  *)
    usage
    ;;
esac
