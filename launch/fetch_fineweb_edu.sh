#!/usr/bin/env bash
# Downloads a sample of FineWeb-Edu as Parquet files, ready for `rfq prepare`.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/fetch_fineweb_edu.sh --out DIR [--sample 10BT|100BT|350BT]
                                   [--tokens N] [--shard i/n] [--dry-run]

Downloads the Parquet files of a sample of FineWeb-Edu (ODC-By 1.0) to DIR, in order of
their names.

--sample   which sample; its name is its size in GPT-2 tokens (default 10BT)
--tokens   only as many files as hold about N tokens, such as 13100000000, the paper's
           13.1 B (which needs --sample 100BT); by the sample's mean bytes per token
--shard    machine i of n, counted from 0, takes files i, i + n, i + 2n, ...
--dry-run  list the files, their size and the room there is; download nothing

Says what will be downloaded and whether it fits before it begins. An interrupted
download goes on where it stopped when the same command is given again. A file has its
name only after its sha256 was found to be the listed one. Needs curl and python3.

Then: rfq prepare DIR --out data/fineweb --tokenizer tokenizer.model
TEXT
}

fail() {
  echo "fetch_fineweb_edu: $1" >&2
  exit 2
}

out="" sample=10BT tokens="" shard=0/1 dry_run=0
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --dry-run) dry_run=1 ;;
    --out | --sample | --tokens | --shard)
      [ $# -ge 2 ] || fail "$1 needs a value; see --help"
      case "$1" in
        --out) out="$2" ;;
        --sample) sample="$2" ;;
        --tokens) tokens="$2" ;;
        --shard) shard="$2" ;;
      esac
      shift
      ;;
    *) fail "unknown argument '$1'; see --help" ;;
  esac
  shift
done
[ -n "$out" ] || fail "--out DIR is missing; see --help"
[[ "$sample" =~ ^(10|100|350)BT$ ]] || fail "--sample '$sample' must be 10BT, 100BT or 350BT"
[[ "$tokens" =~ ^[0-9]*$ ]] || fail "--tokens '$tokens' must be a whole number"
if ! [[ "$shard" =~ ^([0-9]+)/([0-9]+)$ ]] || ((BASH_REMATCH[1] >= BASH_REMATCH[2])); then
  fail "--shard '$shard' must be i/n with 0 <= i < n"
fi
for tool in curl python3; do
  command -v "$tool" >/dev/null || fail "$tool is not installed"
done

# Another host with the same layout, a mirror for example.
host="${RFQ_FINEWEB_HOST:-https://huggingface.co}"
set_name=datasets/HuggingFaceFW/fineweb-edu

# One line a file: name, bytes, sha256. Only this machine's files.
choose='
import json, sys
sample, tokens, shard = sys.argv[1:]
rows = sorted(
    (row["path"].rsplit("/", 1)[-1], row["lfs"]["size"], row["lfs"]["oid"])
    for row in json.load(sys.stdin)
    if row["path"].endswith(".parquet")
)
nominal = int(sample.removesuffix("BT")) * 10**9
if tokens and int(tokens) > nominal:
    sys.exit(f"--tokens {tokens} is more than the sample holds, {nominal}")
room = sum(size for _, size, _ in rows) * (int(tokens) / nominal if tokens else 1)
chosen = []
for row in rows:
    if room <= 0:
        break
    chosen.append(row)
    room -= row[1]
index, count = map(int, shard.split("/"))
for row in chosen[index::count]:
    print(*row)
'
listing="$(curl --fail --silent --show-error --location --retry 5 \
  "$host/api/$set_name/tree/main/sample/$sample")" ||
  fail "the list of files cannot be had from $host; is there a network?"
files="$(python3 -c "$choose" "$sample" "$tokens" "$shard" <<<"$listing")" ||
  fail "the list of files from $host has another form than expected"
[ -n "$files" ] || fail "no file for --shard $shard: there are fewer files than shards"

mkdir -p "$out" || fail "directory '$out' cannot be made"
size_of() {
  if [ -f "$1" ]; then stat -c %s "$1" 2>/dev/null || stat -f %z "$1"; else echo 0; fi
}
total=0 missing=0
while read -r name bytes _; do
  have=$(size_of "$out/$name")
  [ "$have" -gt 0 ] || have=$(size_of "$out/$name.part")
  total=$((total + bytes))
  missing=$((missing + bytes - have))
done <<<"$files"
free=$(($(df -Pk "$out" | awk 'NR == 2 {print $4}') * 1024))
count=$(wc -l <<<"$files")
echo "$count files, $((total / 1000000)) MB in all, $((missing / 1000000)) MB to download," \
  "$((free / 1000000)) MB free in $out"
if [ "$dry_run" = 1 ]; then
  cut -d' ' -f1,2 <<<"$files"
  exit 0
fi
[ "$free" -gt "$missing" ] ||
  fail "$out has $((free / 1000000)) MB free, too few for $((missing / 1000000)) MB; make room or lower --tokens"

sum_of() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi |
    cut -d' ' -f1
}
number=0
while read -r name bytes sum; do
  number=$((number + 1))
  if [ "$(size_of "$out/$name")" = "$bytes" ]; then
    echo "$number/$count $name is there"
    continue
  fi
  part="$out/$name.part"
  echo "$number/$count $name, $((bytes / 1000000)) MB"
  if [ "$(size_of "$part")" -lt "$bytes" ]; then
    # Each retry of curl would begin anew; a loop goes on from what there is.
    for attempt in 1 2 3 4 5 6; do
      curl --fail --silent --show-error --location --continue-at - --output "$part" \
        "$host/$set_name/resolve/main/sample/$sample/$name" && break
      [ "$attempt" -lt 6 ] ||
        fail "$name cannot be downloaded; give the same command again later, it goes on from here"
      sleep "${RFQ_FETCH_WAIT:-$((attempt * 5))}"
    done
  fi
  if [ "$(sum_of "$part")" != "$sum" ]; then
    rm -f "$part"
    fail "$name arrived damaged (its sha256 is not the listed one) and was removed; give the same command again"
  fi
  mv "$part" "$out/$name"
done <<<"$files"
echo "done: $out"
