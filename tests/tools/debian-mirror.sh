# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: LGPL-2.1-or-later
# Sourced by the tools that fetch: a private apt state on the machine's own Debian mirror.
# It changes nothing of the machine's apt, installs nothing, and knows no mirror's name by itself.

# Exit codes of the tools: what the caller prints when it skips is the last line of stderr.
readonly EXIT_FAILED=1 EXIT_USAGE=2 EXIT_UNAVAILABLE=3

die() { echo "${0##*/}: $1" >&2; exit "${2:-$EXIT_FAILED}"; }

# Prints the URIs of the machine's entries for its own release's component main, one a line, best first.
# Reads both forms: deb822 (*.sources) and one-line (*.list). Security and other suites do not count.
debian_mirrors() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    shopt -s nullglob
    local lists=(/etc/apt/sources.list.d/*.list) sources=(/etc/apt/sources.list.d/*.sources)
    shopt -u nullglob
    [ -f /etc/apt/sources.list ] && lists=(/etc/apt/sources.list "${lists[@]}")
    {
        [ ${#sources[@]} -gt 0 ] && awk -v codename="$codename" '
            function flush(   n, i, u) {
                if (types ~ /(^| )deb( |$)/ && enabled !~ /^(no|false)$/ && (" " components " ") ~ / main / &&
                    ((" " suites " ") ~ (" (" codename "|stable) ")))
                {
                    n = split(uris, u, " ")
                    for (i = 1; i <= n; i++) print u[i]
                }
                types = uris = suites = components = enabled = key = ""
            }
            FNR == 1 { flush() }
            /^#/ { next }
            /^[ \t]*$/ { flush(); next }
            /^[ \t]/ { value = $0 }
            /^[^ \t]/ { i = index($0, ":"); key = tolower(substr($0, 1, i - 1)); value = substr($0, i + 1) }
            { gsub(/[ \t]+/, " ", value); sub(/^ /, "", value); sub(/ $/, "", value) }
            key == "types" { types = types " " value }
            key == "uris" { uris = uris " " value }
            key == "suites" { suites = suites " " value }
            key == "components" { components = components " " value }
            key == "enabled" { enabled = value }
            END { flush() }' "${sources[@]}"
        [ ${#lists[@]} -gt 0 ] && awk -v codename="$codename" '
            $1 != "deb" { next }
            { sub(/^deb[ \t]+/, ""); sub(/^\[[^]]*\][ \t]*/, ""); sub(/#.*/, "") }
            ($2 == codename || $2 == "stable") && (" " $0 " ") ~ / main / { print $1 }' "${lists[@]}"
    } | grep -E '^(https?|file|copy|mirror\+[a-z]+|tor\+https?):' |
        awk '!seen[$0]++ { if ($0 ~ /\/debian\/?$/) print; else later[++n] = $0 }
             END { for (i = 1; i <= n; i++) print later[i] }'
}

# Makes a private apt state in directory $1; afterwards apt_get and apt_cache use it.
#   $1 directory   $2 suites (a list in one word)   $3 dpkg status: "own" (the machine's) or "empty" (to get a whole closure)
# Third party entries are no danger: what Debian's archive keys did not sign is refused.
apt_state() {
    local dir=$1 suites=$2 status=$3 uri log keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] || keyring=/etc/apt/trusted.gpg.d
    mkdir -p "$dir"/{lists/partial,archives/partial,etc}
    : >"$dir/empty"
    APT_OPTIONS=(
        -o Dir::Etc::sourcelist="$dir/etc/sources.list" -o Dir::Etc::sourceparts=-
        -o Dir::Etc::preferences="$dir/empty" -o Dir::Etc::preferencesparts="$dir/etc"
        -o Dir::State::Lists="$dir/lists" -o Dir::State="$dir" -o Dir::Cache::archives="$dir/archives"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::Log="$dir"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=2
        -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Debug::NoLocking=1
        -o APT::Update::Error-Mode=any -o APT::Get::List-Cleanup=false
        -o Dpkg::Use-Pty=0 -o APT::Architecture=amd64 -o APT::Architectures=amd64
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false)
    case $status in
        own) APT_OPTIONS+=(-o Dir::State::status=/var/lib/dpkg/status) ;;
        empty) APT_OPTIONS+=(-o Dir::State::status="$dir/empty") ;;
    esac
    log=$dir/update.log
    : >"$log"
    for uri in $(debian_mirrors); do
        # shellcheck disable=SC2086  # a list of suites
        printf "deb [signed-by=$keyring] $uri %s main\n" $suites >"$dir/etc/sources.list"
        if apt_get update >>"$log" 2>&1; then return 0; fi
    done
    [ -s "$log" ] || echo "no entry for Debian's own release in the machine's apt sources" >"$log"
    die "suite $suites cannot be had from the machine's Debian mirror: $(grep -E '^[EW]:|no entry' "$log" |
        head -n 1 | sed -E 's,[a-z+]+://[^ ]*,(mirror),g')" $EXIT_UNAVAILABLE
}

# Adds the sources of the suites that apt_state in directory $1 has found.
apt_sources() {
    sed -n 's/^deb /deb-src /p' "$1/etc/sources.list" >>"$1/etc/sources.list"
    apt_get update >>"$1/update.log" 2>&1 || die "sources cannot be had from the machine's Debian mirror" $EXIT_UNAVAILABLE
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -q "${APT_OPTIONS[@]}" "$@"; }
apt_cache() { apt-cache -q "${APT_OPTIONS[@]}" "$@"; }

# Runs a download ("$@" is given to apt-get) in directory $1; leaves with 3 when the packages cannot be had.
apt_download() {
    local dir=$1 log
    shift
    log=$dir/download.log
    (cd "$dir" && apt_get "$@") >"$log" 2>&1 && return 0
    die "packages cannot be had: $(grep -E '^E:' "$log" | head -n 1 | sed -E 's,[a-z+]+://[^ ]*,(mirror),g')" \
        $EXIT_UNAVAILABLE
}

# Publishes the finished directory $1 as $2 in one rename; an older $2 is moved aside first.
publish() {
    local from=$1 to=$2 old
    if [ -e "$to" ]; then
        old=$(mktemp -d "$to.old.XXXXXX")
        mv -T "$to" "$old/was"
    fi
    mv -T "$from" "$to"
    [ -z "${old:-}" ] || rm -rf "$old"
}
