#!/usr/bin/env bash
# Makes the virtual environment that every other script of this folder uses.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/setup.sh [--dev]

Makes .venv with rfq and all it needs; does nothing when that is up to date.

  --dev    also what launch/test.sh needs (pytest, ruff, basedpyright, import-linter)
  --help   this text

environment variables
  PYTHON               interpreter to use; default: the first Python >= 3.11 among
                       python3, python3.13, python3.12, python3.11, python
  RFQ_VENV             where the environment goes; default: .venv in the repository
  RFQ_SYSTEM_PYTHON=1  use the packages that PYTHON has and install none

A jax with an accelerator plug-in (CUDA, ROCm, TPU) that PYTHON or the environment
already has is used as it is; only what is missing beside it is installed.
TEXT
}

say() { echo "setup: $*" >&2; }

fail() {
  echo "launch/setup.sh: $*" >&2
  exit 1
}

# --- which Python ---------------------------------------------------------------------

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# "python3 is 3.9.2", or nothing when it does not run.
describe() {
  "$1" -c 'import platform, sys
print(sys.argv[1] + " is " + platform.python_version())' "$1" 2>/dev/null || true
}

# What the shell or a version manager says of an interpreter that does not run.
refusal() { { "$1" --version 2>&1 || true; } | head -n 1 | sed 's/^.*line [0-9]*: //'; }

find_python() {
  local candidate description found=""
  if [ -n "${PYTHON:-}" ]; then
    if new_enough "$PYTHON"; then
      command -v "$PYTHON"
      return
    fi
    description="$(describe "$PYTHON")"
    [ -n "$description" ] || description="it does not run: $(refusal "$PYTHON")"
    fail "PYTHON=$PYTHON cannot be used ($description);" \
      "name a Python 3.11 or newer, or unset PYTHON"
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    command -v "$candidate" >/dev/null || continue
    if new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
    description="$(describe "$candidate")"
    [ -z "$description" ] || found="$found${found:+, }$description"
  done
  fail "no Python 3.11 or newer here (found: ${found:-none at all});" \
    "install one, or name it: PYTHON=/path/to/python3.12 launch/setup.sh"
}

# --- what is there and what is wanted -------------------------------------------------

# Python: the accelerator plug-ins of jax that an interpreter sees, and the jax they
# belong to, as pip constraints; empty on a CPU-only install.
pins_code='
import importlib.metadata
import re

ours = re.compile(r"jax|jaxlib|libtpu|jax[-_](cuda|rocm|metal|oneapi).*|nvidia[-_].*")
names = [dist.name or "" for dist in importlib.metadata.distributions()]
found = {name for name in names if ours.fullmatch(name.lower())}
plugged = any(re.match("libtpu|jax[-_]", name.lower()) for name in found)
pins = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(found)]
pins = pins if plugged else []
'

# Two hashes, of the interpreter and the place (new ones need a new environment) and of
# the requirements (new ones need only pip), then 1 where packages are borrowed, or 0.
probe() {
  "$python" -c "$pins_code"'
import hashlib
import pathlib
import sys

root, venv, system = sys.argv[1:]
borrow = system == "1" or bool(pins)
place = [sys.version, sys.prefix, root, venv, system, str(borrow)]
place += sys.path[1:] if borrow else []
wanted = hashlib.sha256()
for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
    wanted.update(pathlib.Path(root, name).read_bytes())
place = hashlib.sha256("\n".join(place).encode())
print(place.hexdigest(), wanted.hexdigest(), int(borrow))
' "$root" "$venv" "$system"
}

# The requirements that an interpreter does not meet, as "grain>=0.2, jax>=0.10 (has 0.9)".
lacking() {
  "$python" - "$dev" <<'PY'
import importlib.metadata
import sys
import tomllib

try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit(print("packaging"))
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = project["dependencies"]
if sys.argv[1] == "1":
    wanted = wanted + project["optional-dependencies"]["test"]
lacking = []
for text in wanted:
    requirement = Requirement(text)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        lacking.append(text)
        continue
    if not requirement.specifier.contains(version, prereleases=True):
        lacking.append(f"{text} (has {version})")
print(", ".join(lacking))
PY
}

# --- making it ------------------------------------------------------------------------

# The state file is ours: empty while set-up works, "PLACE WANTED DEV" when it is done.
up_to_date() {
  local done_place="" done_wanted="" done_dev=""
  [ -s "$state" ] && [ -x "$venv/bin/python" ] || return 1
  read -r done_place done_wanted done_dev <"$state" || return 1
  [ "$done_place $done_wanted" = "$place $wanted" ] && [ "$done_dev" -ge "$dev" ]
}

# Only an environment that was finished by the same interpreter in the same place is
# added to: an interrupted one may hold half a package. Its developer tools stay current.
reusable() {
  local done_place="" done_dev=""
  [ -s "$state" ] && [ -x "$venv/bin/python" ] || return 1
  read -r done_place _ done_dev <"$state" && [ "$done_place" = "$place" ] || return 1
  [ "$dev" -ge "$done_dev" ] || dev="$done_dev"
}

take_lock() {
  if ! { mkdir -p "$(dirname "$venv")" && : >>"$venv.lock"; } 2>/dev/null; then
    fail "cannot write $venv; choose another place: RFQ_VENV=/path/to/venv"
  fi
  exec 9>>"$venv.lock"
  # The lock belongs to file descriptor 9, so it ends with this script, however it ends.
  "$python" - <<'PY'
import fcntl
import sys

try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("setup: another set-up is at work here; waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}

make_environment() {
  local flag=""
  if [ -e "$venv" ]; then
    [ -f "$state" ] || [ -z "$(ls -A "$venv")" ] ||
      fail "$venv exists and launch/setup.sh did not make it;" \
        "remove it or choose another place: RFQ_VENV=/path/to/venv"
    mv "$venv" "$venv.old.$$"
    rm -rf "$venv.old.$$"
  fi
  mkdir "$venv"
  : >"$state"
  [ "$system" = 0 ] || flag="--without-pip"
  if [ -z "$flag" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    fail "$python has no venv module; install it (Debian and Ubuntu:" \
      "apt install python3-venv) or name another Python with PYTHON"
  fi
  # shellcheck disable=SC2086 # $flag is one word or none.
  "$python" -m venv $flag "$venv" >&2 ||
    fail "$python -m venv failed (its reason is above)"
}

# Where the environment keeps its packages, said without asking it.
packages_folder() {
  "$python" -c 'import sys, sysconfig
place = dict(base=sys.argv[1], platbase=sys.argv[1])
print(sysconfig.get_path("purelib", "venv", vars=place))' "$venv"
}

# Lets the environment see the packages of $python, which may itself be a virtual
# environment: --system-site-packages would skip that one.
borrow_packages() {
  local packages
  packages="$(packages_folder)"
  "$python" - "$packages/zz-borrowed.pth" <<'PY'
import pathlib
import sys
import sysconfig

standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
folders = [
    folder
    for folder in sys.path[1:]
    if pathlib.Path(folder).is_dir()
    and folder not in standard
    and not folder.endswith("lib-dynload")
]
lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
pathlib.Path(sys.argv[1]).write_text("\n".join(lines) + "\n")
PY
}

# What `pip install --editable .` would leave, made without pip.
link_package() {
  local packages
  packages="$(packages_folder)"
  echo "$root" >"$packages/rfq-source.pth"
  printf '#!%s\nimport runpy\n\nrunpy.run_module("rfq", run_name="__main__")\n' \
    "$venv/bin/python" >"$venv/bin/rfq"
  chmod +x "$venv/bin/rfq"
}

pip_install() {
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@" >&2
}

install_packages() {
  local pins lock=requirements.lock extra=""
  if [ "$dev" = 1 ]; then
    lock=requirements-dev.lock
    extra="[dev]"
  fi
  pins="$("$venv/bin/python" -c "$pins_code"'print("\n".join(pins))')"
  if [ -n "$pins" ]; then
    say "keeping $(echo "$pins" | tr '\n' ' ')"
    echo "$pins" >"$venv/accelerator-pins.txt"
    pip_install --constraint "$venv/accelerator-pins.txt" --editable ".$extra"
  else
    pip_install --requirement "$lock" &&
      pip_install --no-deps --no-build-isolation --editable .
  fi || fail "pip could not install the packages of $lock (its reason is above);" \
    "it needs a package index or, offline, a folder of wheels:" \
    "PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER launch/setup.sh"
}

# --- the script -----------------------------------------------------------------------

dev=0
for arg in "$@"; do
  case "$arg" in
    --dev) dev=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown argument $arg; it takes --dev and --help" ;;
  esac
done
system="${RFQ_SYSTEM_PYTHON:-0}"
case "$system" in
  0 | 1) ;;
  *) fail "RFQ_SYSTEM_PYTHON=$system is neither 0 nor 1" ;;
esac

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="${RFQ_VENV:-.venv}"
case "$venv" in /*) ;; *) venv="$root/$venv" ;; esac
venv="${venv%/}"
state="$venv/rfq-setup-state"

python="$(find_python)"
read -r place wanted borrow <<<"$(probe)"

if up_to_date; then
  say "$venv is up to date"
  exit 0
fi
take_lock
if up_to_date; then
  say "$venv is up to date"
  exit 0
fi

SECONDS=0
if [ "$system" = 1 ]; then
  missing="$(lacking)"
  [ -z "$missing" ] || fail "RFQ_SYSTEM_PYTHON=1, but $python lacks $missing;" \
    "install that there, or run without RFQ_SYSTEM_PYTHON"
fi
if reusable; then
  say "updating $venv"
  : >"$state"
else
  say "making $venv, which takes a minute or two; $(describe "$python")"
  make_environment
  [ "$borrow" = 0 ] || borrow_packages
fi
if [ "$system" = 1 ]; then
  link_package
else
  install_packages
fi
echo "$place $wanted $dev" >"$state.new"
mv "$state.new" "$state"
say "$venv is ready after $SECONDS s"
