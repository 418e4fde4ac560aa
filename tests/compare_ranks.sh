#!/bin/sh
# compare_ranks.sh [PROGRAM]: tools/examples/mpi prints the same with several processes as with one, which exchanges
# nothing. Skipped (77) without a program, which is only built where MPI is found.
set -eu
if [ $# -lt 1 ] || ! command -v mpirun >/dev/null 2>&1; then
  echo "skipped: no MPI (Debian: libopenmpi-dev, openmpi-bin)"
  exit 77
fi
# Open MPI: more processes than cores, run by root, on machines without ssh.
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_plm_rsh_agent=sh OMPI_MCA_btl=self,vader
alone=$("$1")
echo "$alone"
case $alone in
*"entries in all"*) ;;
*) echo "no result" && exit 1 ;;
esac
for n in 2 3; do
  together=$(mpirun -n "$n" "$1")
  [ "$together" = "$alone" ] && continue
  printf 'with %s processes:\n%s\n' "$n" "$together" >&2
  exit 1
done
