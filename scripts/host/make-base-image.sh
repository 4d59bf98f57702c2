# shellcheck shell=sh
# make_base_image: the image that all others are built on, under our own tag. Its root
# is debian:trixie-slim from a registry; where none answers, the same made by debootstrap
# from the mirror that the machine's own apt sources name.
. scripts/host/install-docker.sh
. scripts/host/report-failure.sh

ROOT_IMAGE_DEFAULT=debian:trixie-slim
ROOT_IMAGE_OWN=mlflow-stack/root:trixie

image_there() { docker image inspect "$1" >/dev/null 2>&1; }

# Make ROOT_IMAGE_OWN with debootstrap (about 20 s). What it makes is stripped of
# documentation and translations, as the slim images of registries are.
debootstrap_root_image() {
    command -v apt-get >/dev/null || die 'no registry answers and this machine has no apt' \
        "the image $ROOT_IMAGE_DEFAULT cannot be had here" \
        "load it by hand: docker load --input FILE; docker tag IMAGE $ROOT_IMAGE_DEFAULT" "$STATUS_REFUSED"
    is_root || die 'no registry answers, and only root can make the base image with debootstrap' \
        'nothing was built' 'sudo ./stack up' "$STATUS_NOT_ALLOWED"
    if ! command -v debootstrap >/dev/null || [ ! -f "$DEBIAN_KEYRING" ]; then
        apt_update
        apt_install debootstrap debian-archive-keyring
    fi
    make_work_directory
    root=$work_directory/root
    if ! debootstrap --variant=minbase --keyring="$DEBIAN_KEYRING" trixie "$root" "$(debian_mirror)" >"$root.log" 2>&1; then
        tail -n 5 "$root.log" >&2
        die "debootstrap could not make Debian trixie from $(debian_mirror)" 'nothing was built' \
            'set DEBIAN_MIRROR=http://…/debian to a mirror that this machine reaches, then run ./stack up'
    fi
    printf '%s\n' 'path-exclude /usr/share/doc/*' 'path-exclude /usr/share/man/*' \
        'path-exclude /usr/share/locale/*' >"$root/etc/dpkg/dpkg.cfg.d/docker"
    printf '%s\n' 'APT::Install-Recommends "false";' 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/90slim"
    # Through a file: in a pipe, a tar that fails would go unseen.
    if ! tar --directory "$root" --create --file "$root.tar" --numeric-owner --one-file-system \
        --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
        --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./tmp/*' . ||
        ! docker import --change 'CMD ["bash"]' "$root.tar" "$ROOT_IMAGE_OWN" >/dev/null; then
        die 'Docker did not take what debootstrap made' 'nothing was built' \
            'mend what the lines above say (mostly: a full disk), then run ./stack up'
    fi
    rm -rf "$root" "$root.tar"
}

make_base_image() {
    if [ "$(setting BASE_IMAGE "$BASE_IMAGE_DEFAULT")" != "$BASE_IMAGE_DEFAULT" ]; then return 0; fi
    if image_there "$ROOT_IMAGE_DEFAULT"; then
        root_image=$ROOT_IMAGE_DEFAULT
    elif image_there "$ROOT_IMAGE_OWN"; then
        root_image=$ROOT_IMAGE_OWN
    else
        step "base image: pulling $ROOT_IMAGE_DEFAULT"
        if docker pull --quiet "$ROOT_IMAGE_DEFAULT" >/dev/null 2>&1; then
            root_image=$ROOT_IMAGE_DEFAULT
        else
            step "base image: no registry answers; making Debian trixie with debootstrap from $(debian_mirror)"
            debootstrap_root_image
            root_image=$ROOT_IMAGE_OWN
        fi
    fi
    docker buildx build --quiet --tag "$BASE_IMAGE_DEFAULT" --build-arg ROOT_IMAGE="$root_image" \
        --build-arg APT_MIRROR="$(setting APT_MIRROR '')" \
        --build-arg HTTP_PROXY="$(setting BUILD_HTTP_PROXY '')" \
        --build-arg HTTPS_PROXY="$(setting BUILD_HTTPS_PROXY '')" \
        --build-arg NO_PROXY="$(setting BUILD_NO_PROXY '')" \
        --secret id=host_ca,src="$(setting BUILD_CA_FILE /dev/null)" base >/dev/null || die_of_build 'the base image'
}
