#!/bin/sh
# All that needs a GPU, in one call of at most nine minutes on one GPU, without a network: the tests marked `gpu`, then
# one table of training and generation beside transformers, in turn.
#
#     sh benchmarks/gpu.sh                           # the rows; a line that is missing was cut off by the clock
#     sh benchmarks/gpu.sh --device cpu --quick      # dry run: tiny shapes, one round, on a CPU
#
# PYTHON names the interpreter (default: python). Where transformers is not installed, its columns say so.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1
case " $* " in *" --device cpu "*) device="--device cpu" marker= ;; *) device="--device cuda" marker=gpu ;; esac
case " $* " in *" --quick "*) device="$device --quick" ;; esac

# limit SECONDS COMMAND...: end it when its time is over, so that what follows still has its own.
limit() {
    seconds=$1
    shift
    timeout -k 5 "$((seconds * ${PATIENCE:-1}))" "$@" || echo "(ended with $?: $*)"
}

echo "## Tests marked gpu"
# shellcheck disable=SC2046  # so is what grep finds; without a marker the same claims are tried on the CPU
limit 90 "$python" -m pytest $(grep -rlE "mark\.gpu\b" tests --include="test_*.py") -m "$marker" -q \
    -o addopts=--import-mode=importlib -p no:cacheprovider
echo
echo "## Training and generation"
# shellcheck disable=SC2086  # $device is words
limit 330 "$python" benchmarks/training.py $device --pairs 5 --peers compiled --rows gpt2-124m-1024 bert-base-512 ner
# shellcheck disable=SC2086
limit 100 "$python" benchmarks/gpu_generation.py $device --pairs 5 | sed '1,/^|---/d'
