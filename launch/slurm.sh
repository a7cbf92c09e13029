#!/usr/bin/env bash
# sbatch --nodes 2 launch/slurm.sh recipes/paper/kdrl-deepseek-1.5b.yaml [dotted.key=value ...]
# One launcher a machine; LAUNCH (for a single one: launch/gpu8-zero2.yaml) and LEARNERS=16 (learner ranks in all) are read
# from the environment.
#SBATCH --job-name=rlkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
set -euo pipefail
recipe="${1:?usage: sbatch --nodes N launch/slurm.sh RECIPE [dotted.key=value ...]}"
shift
nodes="$SLURM_JOB_NUM_NODES"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")" # whole: cut short in a pipe, scontrol would die of SIGPIPE
head="${hosts%%$'\n'*}"
launch="${LAUNCH:-launch/nodes2-zero3.yaml}"
learners="${LEARNERS:-$((4 * nodes))}"
port="$((20000 + SLURM_JOB_ID % 20000))" # jobs that share a machine keep apart

# A job that is requeued or started again continues from its last checkpoint; --out keeps the folder the same.
exec srun --kill-on-bad-exit=1 bash -c '
  source "${VENV:-.venv}/bin/activate"
  exec accelerate launch --config_file "$1" --num_machines "$2" --machine_rank "$SLURM_NODEID" --num_processes "$3" \
    --main_process_ip "$4" --main_process_port "$5" "${@:6}"
' rlkd "$launch" "$nodes" "$learners" "$head" "$port" "$recipe" "$@"
