# What tests and benchmark need on Debian 12, as functions for the scripts that source this in a clone's root.
# Installs the Debian packages that are missing and keeps Python packages in .venv; changes nothing else.

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# Installs those of its arguments that are missing.
install_debian_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null || fail "this is no Debian; install what corresponds to: $*"
    for package; do
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    export DEBIAN_FRONTEND=noninteractive
    local apt_get=(apt-get --quiet=2 --option DPkg::Lock::Timeout=300)
    "${apt_get[@]}" update
    "${apt_get[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null  # dpkg isn't quiet by itself
}

# Everything in .venv depends on pyproject.toml and, as the package is installed in place, on where the clone is.
install_python_packages() {
    local installed_for=.venv/installed-for wanted
    wanted="$PWD $(sha256sum pyproject.toml)"
    [[ -e $installed_for && $(<"$installed_for") == "$wanted" ]] && .venv/bin/python -c '' && return
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
    python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --editable '.[test]'
    printf '%s\n' "$wanted" >"$installed_for"
}

# As pip does for a package that isn't installed in place: each mount is a start of Python, and with
# PYTHONDONTWRITEBYTECODE set, as in many containers, it would compile everything anew.
compile_package() {
    .venv/bin/python -m compileall -q pyoverlay
}

ensure_kernel_support() {
    [[ -c /dev/fuse ]] || modprobe fuse 2>/dev/null || true
    [[ -c /dev/fuse ]] || mknod --mode=666 /dev/fuse c 10 229 || true
    { : <>/dev/fuse; } 2>/dev/null || fail "/dev/fuse can't be opened; in a container, run it with --privileged"
    grep --quiet --word-regexp overlay /proc/filesystems || modprobe overlay 2>/dev/null ||
        fail "the kernel has no overlayfs, which everything is compared with"
}

packages_to_build_and_mount=(
    python3-venv python3-dev gcc pkg-config libfuse3-dev fuse3  # to build pyfuse3 and to mount
)
packages_of_tests=(
    attr acl e2fsprogs xfsprogs btrfs-progs util-linux procps   # what tests look at layers with, and make layers on
    debootstrap busybox-static sqlite3 git                      # what tests run in a merged view
    mount systemd                                               # who else mounts
    docker.io podman buildah containerd crun runc skopeo umoci  # the engines, and what reads their images
    uidmap                                                      # engines of users without root rights
)
packages_of_benchmark=(
    fuse-overlayfs unionfs-fuse                                 # the peers
    debootstrap findutils git                                   # the work, and the root file system below it
)

install_for_tests() {
    ((EUID == 0)) || fail "the tests mount file systems; run this as root"
    install_debian_packages "${packages_to_build_and_mount[@]}" "${packages_of_tests[@]}" "${packages_of_benchmark[@]}"
    install_python_packages
    compile_package
    ensure_kernel_support
}

install_for_benchmark() {
    ((EUID == 0)) || fail "the benchmark mounts file systems and drops caches; run this as root"
    install_debian_packages "${packages_to_build_and_mount[@]}" "${packages_of_benchmark[@]}"
    install_python_packages
    compile_package
    ensure_kernel_support
}
