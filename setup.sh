#!/usr/bin/env bash
# Makes .venv with everything the suite needs; run it again at any time. `bash setup.sh --help` explains.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'EOF'
Usage: bash setup.sh [--dev | --suites]

Makes a virtual environment in .venv with mrvlm_sim in it, and ends with `.venv/bin/mrvlm-sim doctor`.
Run it again at any time: what is there already is left alone.

  --dev     also install the tests, the linter and the type checker
  --suites  make .venv-suites instead: with Meta-World, Gymnasium-Robotics, the MuJoCo they accept, and the tests
  --help    show this text

On Debian and Ubuntu, missing system packages (OpenGL without a display, venv) are installed with apt;
elsewhere they are named. Variable: PYTHON=/path/to/python to use another Python (3.11 or newer).
EOF
}

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

extras=base venv=.venv
for argument in "$@"; do
    case "$argument" in
        --dev) extras=dev ;;
        --suites) extras=test,metaworld,gymnasium-robotics venv=.venv-suites ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown argument: $argument" ;;
    esac
done

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif ! command -v sudo >/dev/null; then return 1
    elif [ -t 0 ]; then sudo "$@"
    else sudo -n "$@"; fi
}

# Installs Debian packages that are not there yet; without apt, root or network it says so and goes on.
install_packages() {
    local missing=() package
    for package in "$@"; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} -eq 0 ]; then return 0; fi
    say "installing system packages: ${missing[*]}"
    if as_root apt-get update -q >&2 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
    then return 0; fi
    say "could not install them; if something fails below, run as root: apt-get install ${missing[*]}"
}

has_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if new_enough "$candidate"; then echo "$candidate"; return; fi
    done
}

make_venv() {
    local python version
    python=$(find_python)
    if [ -z "$python" ] && has_apt; then
        install_packages python3 python3-venv
        python=$(find_python)
    fi
    [ -n "$python" ] || fail "no Python 3.11 or newer found; install one or set PYTHON=/path/to/python"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && has_apt; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        install_packages "python$version-venv"
    fi
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || fail "this Python cannot make virtual environments; install its venv module"
}

if has_apt; then
    install_packages libegl1 libgl1-mesa-dri libopengl0
elif [ "$(uname -s)" = Linux ] && ! ldconfig -p 2>/dev/null | grep -q 'libEGL\.so\.1'; then
    say "no apt here: install EGL and a Mesa or GPU driver yourself (Fedora: libglvnd-egl libglvnd-opengl mesa-dri-drivers)"
fi

if [ -e "$venv" ] && ! new_enough "$venv/bin/python"; then
    say "the $venv that is here does not run; making it anew"
fi
new_enough "$venv/bin/python" || make_venv

stamp=$venv/mrvlm-sim.stamp
wanted=$("$venv/bin/python" - <<'EOF'
import hashlib, pathlib
names = ("pyproject.toml", "constraints.txt", "constraints-suites.txt")
inputs = b"".join(pathlib.Path(name).read_bytes() for name in names)
print(hashlib.sha256(inputs + str(pathlib.Path.cwd()).encode()).hexdigest())
EOF
)
found=$(cat "$stamp" 2>/dev/null || true)
if [ -x "$venv/bin/mrvlm-sim" ] && { [ "$found" = "$wanted $extras" ] || [ "$found" = "$wanted dev" ]; }; then
    say "Python packages are as pinned"
else
    target=".[$extras]" constraints=constraints.txt
    if [ "$extras" = base ]; then target=.; fi
    if [ "$venv" = .venv-suites ]; then
        constraints=$venv/constraints.txt  # all but MuJoCo as in constraints.txt
        { grep -v '^mujoco' constraints.txt; cat constraints-suites.txt; } >"$constraints"
    fi
    say "installing Python packages (a minute or more the first time)"
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        -c "$constraints" -e "$target" </dev/null
    echo "$wanted $extras" >"$stamp"
fi

"$venv/bin/mrvlm-sim" doctor
