#!/usr/bin/env bash
# Everything once on a CUDA GPU: the tests marked gpu, both stages of the demo, a resume after kill -9,
# an evaluation, and parity with the original at the highest matmul precision.
#
#     bash benchmarks/gpu_smoke.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$(pwd)
python=${1:-python}
work=$(mktemp -d)
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c "import jax; assert jax.default_backend() == 'gpu', 'no CUDA device'; print(jax.devices())"

echo "== parity and GPU tests"
JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m pytest -m gpu tests
JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m pytest tests/charm_jax/models

echo "== a run without a break, and one that is killed"
cd "$work"
train() { "$python" -m charm_jax.train --config.deterministic "--config.name=$1"; }
train whole
"$python" -m charm_jax.train --config.deterministic --config.name=killed &
process=$!
until [ -d runs/killed/checkpoints/bce/50 ]; do
    kill -0 "$process"
    sleep 0.2
done
kill -9 "$process"
wait "$process" || true
train killed
for name in whole killed; do "$python" -m charm_jax.eval --run "$name"; done
"$python" - <<'PY'
import json

digests = [json.load(open(f"runs/{n}/summary.json"))["params_sha256"] for n in ("whole", "killed")]
assert digests[0] == digests[1], "the resumed run ended elsewhere"
print("resumed run: the same parameters, bit for bit")
PY
rm -rf "$work"
