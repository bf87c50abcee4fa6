#!/bin/sh
# Installs, upgrades and removes the Plimsoll agent on one host. Lies in the release archive beside what it installs.
set -eu

NAME=plimsoll-agent
UNIT=$NAME.service
# Drop-ins that may come along; others are the administrator's.
DROP_INS='nvidia capabilities kernel-log'

usage() {
    cat <<'HELP'
Installs or upgrades the Plimsoll agent; what is in place already stays as it is.

Usage: install.sh [OPTIONS]

As root it makes the system user plimsoll-agent and installs for the whole host:
  /usr/local/bin/plimsoll-agent, /etc/plimsoll/agent.toml, a systemd unit, and a drop-in for the unit where an NVIDIA card is.
As another user it installs below the prefix, for that user alone:
  bin/plimsoll-agent, etc/plimsoll/agent.toml, and a systemd user unit where systemd runs for that user.

Options:
  --nats-url URL       address of the broker, for a new configuration file
  --binary FILE        the program [default: plimsoll-agent beside this script]
  --url URL            fetch the program from there instead; needs --sha256
  --sha256 HEX         what the program must hash to
  --prefix DIR         where the program goes [default: /usr/local, as another user than root ~/.local]
  --with-capabilities  let the agent look into every file and process, for what only root sees otherwise
  --with-kernel-log    let the agent read the kernel log
  --no-start           neither start nor enable the service
  --root DIR           put everything below DIR, as for an image: makes no user, starts nothing
  --uninstall          remove the program and the unit; configuration, state and user stay
  --purge              remove these too
  --help               show this

Exit codes: 0 when done, 64 for a wrong command line, 1 otherwise; nothing is changed before the program is verified.
HELP
}

say() {
    printf '%s\n' "$*"
}

die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

wrong() {
    printf 'install.sh: %s; --help shows the options\n' "$*" >&2
    exit 64
}

# --- what is asked for

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
action=install
binary='' url='' sha256='' nats_url='' prefix='' root='' start=yes
with=''

while [ $# -gt 0 ]; do
    case $1 in
    --nats-url | --binary | --url | --sha256 | --prefix | --root)
        [ $# -ge 2 ] || wrong "$1 needs a value"
        [ -n "$2" ] || wrong "$1 needs a value"
        case $1 in
        --nats-url) nats_url=$2 ;;
        --binary) binary=$2 ;;
        --url) url=$2 ;;
        --sha256) sha256=$(printf '%s' "$2" | tr 'A-F' 'a-f') ;;
        --prefix) prefix=$2 ;;
        --root) root=${2%/} ;;
        esac
        shift
        ;;
    --with-capabilities) with="$with capabilities" ;;
    --with-kernel-log) with="$with kernel-log" ;;
    --no-start) start=no ;;
    --uninstall) [ "$action" = purge ] || action=uninstall ;;
    --purge) action=purge ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) wrong "unknown option $1" ;;
    esac
    shift
done

[ -z "$binary" ] || [ -z "$url" ] || wrong '--binary and --url exclude each other'
[ -z "$url" ] || [ -n "$sha256" ] || wrong '--url needs --sha256, so that what is fetched can be verified'
case $sha256 in
*[!0-9a-f]*) wrong '--sha256 expects 64 hexadecimal digits' ;;
esac
[ -z "$sha256" ] || [ ${#sha256} -eq 64 ] || wrong '--sha256 expects 64 hexadecimal digits'
case $url in
'' | https://* | http://127.0.0.1[:/]* | http://localhost[:/]*) ;;
*) wrong '--url expects https, or http on loopback' ;;
esac
case $nats_url in
'') ;;
*[!][A-Za-z0-9._~:/,@%+=-]*) wrong '--nats-url expects addresses such as nats://broker.example.org:4222, separated by commas' ;;
nats://?* | tls://?* | ws://?* | wss://?*) ;;
*) wrong '--nats-url expects addresses such as nats://broker.example.org:4222, separated by commas' ;;
esac
# These characters would need escapes in the files below.
case $prefix$root in
*[\"\\\|\&%\$\ ]*) wrong '--prefix and --root expect a path without spaces and quotes' ;;
esac
case ${prefix:-/} in
/*) ;;
*) wrong '--prefix expects an absolute path' ;;
esac
case ${root:-/} in
/*) ;;
*) wrong '--root expects an absolute path' ;;
esac

# --- where things are

is_root() {
    [ "$(id -u)" -eq 0 ]
}

if is_root || [ -n "$root" ]; then
    scope=system
    prefix=${prefix:-/usr/local}
    config_dir=/etc/plimsoll
    state=/var/lib/$NAME
    unit_dir=/etc/systemd/system
else
    scope=user
    prefix=${prefix:-${HOME:?the variable HOME is not set: use --prefix}/.local}
    config_dir=$prefix/etc/plimsoll
    state=$prefix/var/lib/$NAME
    unit_dir=${XDG_CONFIG_HOME:-${HOME:-$prefix}/.config}/systemd/user
fi
program=$prefix/bin/$NAME
man_page=$prefix/share/man/man1/$NAME.1
config=$config_dir/agent.toml

# The account that the service runs under is made only on a running system.
owns_system() {
    [ "$scope" = system ] && [ -z "$root" ]
}

systemd_runs() {
    if [ -n "$root" ]; then
        return 1
    elif [ "$scope" = system ]; then
        [ -d /run/systemd/system ]
    else
        systemctl --user show-environment >/dev/null 2>&1
    fi
}

systemd_wanted() {
    [ -n "$root" ] || systemd_runs
}

control() {
    if [ "$scope" = user ]; then
        systemctl --user "$@"
    else
        systemctl "$@"
    fi
}

# --- installing

temporary=$(mktemp -d)
staged=''
trap 'rm -rf "$temporary"; [ -z "$staged" ] || rm -f "$staged"' EXIT
trap 'exit 1' HUP INT TERM

hash_of() {
    if command -v sha256sum >/dev/null; then
        sha256sum <"$1"
    elif command -v shasum >/dev/null; then
        shasum -a 256 <"$1"
    else
        openssl dgst -sha256 -r <"$1"
    fi | cut -d ' ' -f 1
}

fetch() {
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --proto-redir '=https' --max-time 900 --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --quiet --timeout=60 --output-document="$2" "$1"
    else
        die 'neither curl nor wget is here to fetch the program: fetch it elsewhere and use --binary'
    fi || die "failed to fetch $1"
}

# Puts a file in place, whole or not at all. Sets `changed` where it was not there already.
changed=no
put() { # mode, source, destination
    if cmp -s "$2" "$root$3"; then
        say "unchanged  $root$3"
        return
    fi
    mkdir -p "$(dirname "$root$3")"
    staged=$(dirname "$root$3")/.$(basename "$3").new
    cp "$2" "$staged"
    chmod "$1" "$staged"
    mv -f "$staged" "$root$3"
    staged=''
    changed=yes
    say "wrote      $root$3"
}

# Takes the program to a place of ours and verifies it there: nobody may exchange it in between.
verify_program() {
    new=$temporary/$NAME
    if [ -n "$url" ]; then
        fetch "$url" "$new"
    else
        binary=${binary:-$here/$NAME}
        [ -f "$binary" ] || die "there is no program at $binary: unpack the whole release archive, or use --binary or --url"
        cp "$binary" "$new"
    fi
    if [ -n "$sha256" ]; then
        found=$(hash_of "$new")
        [ "$found" = "$sha256" ] || die "the program is not the one expected, nothing is changed: its SHA-256 is $found"
    fi
    for file in agent.toml "systemd/$UNIT"; do
        [ -f "$here/$file" ] || die "there is no $here/$file: unpack the whole release archive"
    done
}

# Whether the program runs here, tried beside its later place, as /tmp may forbid it.
check_program() {
    [ -z "$root" ] || return 0
    mkdir -p "$prefix/bin"
    staged=$prefix/bin/.$NAME.check
    cp "$new" "$staged"
    chmod 0755 "$staged"
    version=$("$staged" --version) || die 'the program does not run on this host, nothing is changed: is it for another architecture?'
    rm -f "$staged"
    staged=''
    say "$version"
}

make_user() {
    if id "$NAME" >/dev/null 2>&1; then
        return
    elif command -v useradd >/dev/null; then
        nologin=$(command -v nologin || echo /bin/false)
        useradd --system --user-group --no-create-home --home-dir "$state" --shell "$nologin" "$NAME"
    else
        # BusyBox.
        addgroup -S "$NAME"
        adduser -S -D -H -h "$state" -s /sbin/nologin -G "$NAME" "$NAME"
    fi
    say "made       user $NAME"
}

write_config() {
    if [ -e "$root$config" ]; then
        say "kept       $root$config"
        [ -z "$nats_url" ] || grep -qF "\"$nats_url\"" "$root$config" || say "           set its url to \"$nats_url\" yourself"
    else
        {
            [ "$scope" = system ] || printf 'state_dir = "%s"\n\n' "$state"
            sed "s|^url = .*|url = \"${nats_url:-nats://127.0.0.1:4222}\"|" "$here/agent.toml"
        } >"$temporary/agent.toml"
        put 0640 "$temporary/agent.toml" "$config"
    fi
    if owns_system; then
        # The agent reads it, and nobody else: an address may hold a password.
        chown "root:$NAME" "$config"
        chmod 0640 "$config"
    fi
}

make_state() {
    [ -z "$root" ] || return 0
    mkdir -p "$state"
    chmod 0750 "$state"
    if owns_system; then
        chown "$NAME:$NAME" "$state"
    fi
}

has_nvidia_card() {
    for device in "$root"/sys/bus/pci/devices/*; do
        [ -r "$device/vendor" ] || continue
        # Display controllers (class 03) of NVIDIA; other functions of a card are not asked.
        case $(cat "$device/vendor")$(cat "$device/class") in
        0x10de0x03*) return 0 ;;
        esac
    done
    return 1
}

write_units() {
    sed "s|^ExecStart=/usr/local/bin/|ExecStart=$prefix/bin/|" "$here/systemd/$UNIT" >"$temporary/$UNIT"
    put 0644 "$temporary/$UNIT" "$unit_dir/$UNIT"
    if has_nvidia_card; then
        put 0644 "$here/systemd/$UNIT.d/nvidia.conf" "$unit_dir/$UNIT.d/nvidia.conf"
    elif cmp -s "$here/systemd/$UNIT.d/nvidia.conf" "$root$unit_dir/$UNIT.d/nvidia.conf"; then
        remove "$unit_dir/$UNIT.d/nvidia.conf"
        changed=yes
    fi
    for drop_in in $with; do
        put 0644 "$here/systemd/$UNIT.d/$drop_in.conf" "$unit_dir/$UNIT.d/$drop_in.conf"
    done
}

# A user's own systemd can do little of the sandbox, and the user is the one whose files are at stake.
write_user_unit() {
    cat >"$temporary/$UNIT" <<USER_UNIT
[Unit]
Description=Plimsoll agent

[Service]
Type=exec
ExecStart=$program --config $config
Restart=always
RestartSec=2
RestartPreventExitStatus=64
TimeoutStopSec=15
MemoryMax=128M
Nice=5
NoNewPrivileges=yes
UMask=0077

[Install]
WantedBy=default.target
USER_UNIT
    put 0644 "$temporary/$UNIT" "$unit_dir/$UNIT"
}

start_service() {
    control daemon-reload
    if [ "$start" = no ]; then
        say "start it with: $(control_text) enable --now $NAME"
        return
    fi
    control --quiet enable "$UNIT"
    if ! control --quiet is-active "$UNIT"; then
        control start "$UNIT"
        say "started    $UNIT"
    elif [ "$changed" = yes ]; then
        control restart "$UNIT"
        say "restarted  $UNIT"
    fi
}

control_text() {
    if [ "$scope" = user ]; then
        echo 'systemctl --user'
    else
        echo 'systemctl'
    fi
}

install() {
    if [ "$scope" = system ] && [ -e "$root/var/lib/dpkg/info/$NAME.list" ]; then
        die "the Debian package $NAME is installed: upgrade it with apt, or remove it first"
    fi
    verify_program
    check_program
    if owns_system; then
        make_user
    fi
    put 0755 "$new" "$program"
    if [ -f "$here/$NAME.1" ]; then
        put 0644 "$here/$NAME.1" "$man_page"
    fi
    write_config
    make_state
    if ! systemd_wanted; then
        say "no systemd runs here; start it with: $(start_text)"
        return
    fi
    if [ "$scope" = system ]; then
        write_units
    else
        write_user_unit
    fi
    if systemd_runs; then
        start_service
        if [ "$scope" = user ]; then
            say "for it to run without a login: loginctl enable-linger $(id -un)"
        fi
    else
        say "enable it with: systemctl --root=$root enable $NAME, once the image has a user $NAME"
    fi
}

start_text() {
    if [ "$scope" = system ]; then
        echo "su -s /bin/sh -c '$program --config $config' $NAME"
    else
        echo "$program --config $config"
    fi
}

# --- removing

remove() {
    if [ -e "$root$1" ] || [ -L "$root$1" ]; then
        rm -rf "$root$1"
        say "removed    $root$1"
    fi
}

remove_empty() {
    rmdir "$root$1" 2>/dev/null || true
}

uninstall() {
    if systemd_runs && [ -e "$unit_dir/$UNIT" ]; then
        control --quiet disable --now "$UNIT"
        say "stopped    $UNIT"
    fi
    remove "$unit_dir/multi-user.target.wants/$UNIT"
    remove "$unit_dir/$UNIT"
    for drop_in in $DROP_INS; do
        remove "$unit_dir/$UNIT.d/$drop_in.conf"
    done
    remove_empty "$unit_dir/$UNIT.d"
    remove "$man_page"
    remove "$program"
    if systemd_runs; then
        control daemon-reload
    fi
    [ "$action" = purge ] || say "kept       $root$config_dir and $root$state; --purge removes them too"
}

purge() {
    remove "$config"
    remove "$config_dir/agent.env"
    remove_empty "$config_dir"
    remove "$state"
    if owns_system && id "$NAME" >/dev/null 2>&1; then
        if command -v userdel >/dev/null; then
            userdel "$NAME"
        else
            deluser "$NAME"
        fi
        say "removed    user $NAME"
    fi
}

case $action in
install) install ;;
uninstall) uninstall ;;
purge)
    uninstall
    purge
    ;;
esac
