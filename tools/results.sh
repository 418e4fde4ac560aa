#!/bin/sh
# results.sh [-n PROMPTS] [--model FILE] [--build DIR] [--readme] [FOLDER]: from a built tree, makes README's table of
# policies: tasks of four kinds and two lengths, every policy at every budget with the question known and not known at
# eviction, fidelity, and the report. Everything goes to FOLDER (build/results), --readme also renews README.md and its
# picture. A run that was stopped goes on where it was. 50 prompts of each kind by default.
#
# The two halves, question known and not, run side by side: one alone keeps no two cores of a software device busy.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tools/prepare.sh"

build=$root/build model=$root/tests/data/model-f16.gguf n=50 readme=false
while [ $# -gt 0 ]; do
  case $1 in
    -n) [ $# -gt 1 ] || die "-n needs a number"; n=$2; shift ;;
    --model) [ $# -gt 1 ] || die "--model needs a file"; model=$2; shift ;;
    --build) [ $# -gt 1 ] || die "--build needs a folder"; build=$2; shift ;;
    --readme) readme=true ;;
    -*) die "unknown option $1" ;;
    *) break ;;
  esac
  shift
done
out=${1:-$build/results} laprox=$build/tools/laprox
need_built "$laprox"
mkdir -p "$out"

own=laprox,laprox+gqa=joint,laprox+no-normalize,laprox+gqa=joint+no-normalize,laprox+pool=max:7,laprox+pool-before
own=$own,laprox+scope=layer,laprox+scope=head
rivals=snapkv,adakv,pyramidkv,criticalkv,defensivekv,layer-defensivekv,vatp,tova,keydiff,knorm,streaming,random
probed=laprox+probe,laprox+gqa=joint+probe,laprox+no-normalize+probe,snapkv+probe,adakv+probe,layer-defensivekv+probe
quantised=full+kv=q8_0,full+kv=q4_0 both=laprox+kv=q8_0,laprox+kv=q4_0
budgets=100%,40%,20%,10%,5%,2.5%

[ -s "$out/tasks.jsonl" ] || "$laprox" tasks "$model" -o "$out/tasks.jsonl" -n "$n" --tokens 512,1024 \
  --task niah_single,niah_multikey,niah_multivalue,passkey

# evaluate QUESTION POLICIES OPTION…
evaluate() {
  question=$1 policies=$2
  shift 2
  "$laprox" eval "$model" --tasks "$out/tasks.jsonl" --question "$question" \
    --budgets $budgets --policies "$policies" "$@" --timing "$out/times-$question.json" \
    -o "$out/$question.json" >"$out/$question.txt" 2>"$out/$question.log"
}
[ -s "$out/known.json" ] || evaluate known "$own,$rivals,$quantised,$both" --fidelity 8 --tokens 1024 &
known=$!
status=0
[ -s "$out/unknown.json" ] || evaluate unknown "$own,$rivals,$quantised,$probed" \
  --probe '
Question: What is the secret number of the place? Answer:' --probe '
Question: What is the access code of the thing? Answer:' || status=1
wait $known || status=1
[ $status = 0 ] || die "an evaluation failed: see $out/known.log and $out/unknown.log"

"$laprox" report "$out/known.json" "$out/unknown.json" "$out/times-known.json" -o "$out/report.html"
python3 "$root/tools/results/table.py" --svg "$out/accuracy.svg" "$out/known.json" "$out/unknown.json" >"$out/results.md"
if $readme; then
  cp "$out/accuracy.svg" "$root/tools/results/accuracy.svg"
  { printf '![Share of prompts answered right, over the bytes that are left](tools/results/accuracy.svg)\n\n' &&
      cat "$out/results.md"; } | python3 "$root/tools/replace_table.py" "$root/README.md" results
fi
echo "$out/results.md, accuracy.svg and report.html"
