#!/usr/bin/env bash
# A run on the nodes of a Slurm allocation, for Ray 2.60 and Slurm 22.05 or newer: from the repository root
#
#   sbatch cluster/slurm.sh                                               # digits: does it work here?
#   sbatch cluster/slurm.sh --config my.yaml --run.directory "$PWD/runs"  # the options of `prunefuse run`
#
# The environment (`make install`) and the run directory lie on a file system that all nodes share. A job that ends early
# (time limit, lost node) goes on when it is submitted again, with the same options.
#
#SBATCH --job-name=prunefuse
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --exclusive
#SBATCH --time=08:00:00
# Exclusive, because `ray symmetric-run` ends with `ray stop`, which ends every Ray of yours on the node. With GPUs also
# --gpus-per-node=1 here, and --workers.gpu true among the options.

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"  # symmetric-run calls `ray` by its name

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # since Slurm 22.05 srun does not take it from sbatch

# Whoever reaches Ray's ports needs the token of this job: other users of the cluster do, too.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-auth/$SLURM_JOB_ID"
mkdir -p -m 700 .ray-auth
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
ended="$RAY_AUTH_TOKEN_PATH.ended"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH" "$ended"' EXIT

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
# /etc/hosts of Debian and Ubuntu may give a node its own name at 127.0.1.1, which is of no use to the others: then the
# first address of its interfaces.
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" \
  bash -c 'hostname --ip-address; hostname --all-ip-addresses; true' \
  | awk '{for (i = 1; i <= NF; i++) if (!found && $i !~ /^(127\.|::1$|fe80:)/) {print $i; found = 1}}')
[ -n "$address" ] || { echo "node $head has no address that other nodes can reach" >&2; exit 1; }
[ "$#" -gt 0 ] || set -- --preset digits --run.directory "$PWD/runs"

# Importing Ray from a shared file system may take minutes on a cold node; symmetric-run would wait for 30 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"

# One task on each node: the first starts Ray's head and the run, the others join, and all end with the run.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 ray symmetric-run \
  --address "$address:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "${SLURM_CPUS_PER_TASK:-1}" --disable-usage-stats -- \
  env RAY_ADDRESS="$address:6379" ENDED="$ended" \
  bash -c 'python jobs/run.py "$@"; code=$?; : > "$ENDED"; exit "$code"' run "$@"
# symmetric-run ends with 0 where Ray itself did not start, or was interrupted.
[ -e "$ended" ] || { echo "the run did not begin, or was interrupted: see above" >&2; exit 1; }
