#!/bin/bash
# Start PostgreSQL the way the official image "postgres" does, so that the lab meets the same
# variables, paths, users and half-finished starts on a machine that cannot pull that image.
# tests/integration/test_image_contract.py holds the contract and runs against either image.
set -Eeuo pipefail

init_dir=/docker-entrypoint-initdb.d

say() { printf 'entrypoint: %s\n' "$*"; }
die() { printf 'entrypoint: error: %s\n' "$*" >&2; exit 1; }

# Export VAR from itself, else from the file that VAR_FILE names, else from a default.
#
# An exported password can be read in the environment of PID 1 later on. That is a weakness of the
# official image; it is kept, because a tidier double would hide it from the lab.
resolve() {
  local var=$1 file_var=${1}_FILE default=${2-} value
  local file=${!file_var:-}
  value=${!var:-}
  if [[ -n $file ]]; then
    [[ -z $value ]] || die "both $var and $file_var are set: keep one of them"
    [[ -f $file || -p $file ]] || die "$file_var is $file, and there is no such file"
    value=$(<"$file") || die "$file_var is $file, and that file cannot be read"
  fi
  export "$var=${value:-$default}"
  unset "$file_var"
}

prints_and_quits() {
  local arg
  for arg; do
    case $arg in --help | '-?' | --version | -V | --describe-config) return 0 ;; esac
  done
  return 1
}

# A volume or a tmpfs may come with any owner and mode. Without root there is no more to do than
# to try; the server itself refuses a data directory that others can read.
own_directories() {
  local dir
  for dir in "$PGDATA" ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"}; do
    mkdir -p "$dir"
    chmod 0700 "$dir" 2>/dev/null || true
    [[ $EUID -ne 0 ]] || find "$dir" ! -user postgres -exec chown postgres {} +
  done
  mkdir -p /run/postgresql 2>/dev/null || true
  if [[ $EUID -eq 0 ]]; then
    chown postgres:postgres /run/postgresql
    chmod 3775 /run/postgresql || true
  fi
}

create_cluster() {
  local -a options=(--username="$POSTGRES_USER") extra=() wrapper=()
  # The variable holds words as a shell would write them, quotes included.
  eval "extra=($POSTGRES_INITDB_ARGS)"
  [[ -z ${POSTGRES_INITDB_WALDIR:-} ]] || options+=(--waldir="$POSTGRES_INITDB_WALDIR")

  # initdb wants a name for its user, and `--user 12345` has none.
  if ! getent passwd "$EUID" >/dev/null; then
    local users groups
    users=$(mktemp)
    groups=$(mktemp)
    printf 'postgres:x:%s:%s::%s:/bin/false\n' "$EUID" "$(id -g)" "$PGDATA" >"$users"
    printf 'postgres:x:%s:\n' "$(id -g)" >"$groups"
    wrapper=(env LD_PRELOAD=libnss_wrapper.so
      NSS_WRAPPER_PASSWD="$users" NSS_WRAPPER_GROUP="$groups")
  fi

  if [[ -n $POSTGRES_PASSWORD ]]; then
    # By a pipe: the password is on no command line and in no file.
    "${wrapper[@]}" initdb "${options[@]}" --pwfile=/dev/stdin "${extra[@]}" <<<"$POSTGRES_PASSWORD"
  else
    "${wrapper[@]}" initdb "${options[@]}" "${extra[@]}"
  fi
  [[ ${#wrapper[@]} -eq 0 ]] || rm -f "$users" "$groups"
}

# Takes the server's own options: they may set password_encryption.
open_to_the_network() {
  local method=${POSTGRES_HOST_AUTH_METHOD:-}
  [[ -n $method ]] || method=$(postgres -C password_encryption "$@")
  if [[ $method == trust ]]; then
    say "warning: with POSTGRES_HOST_AUTH_METHOD=trust whoever reaches the port is superuser" >&2
  fi
  printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

# No TCP: nobody outside can take the server for ready while its init scripts still run.
start_private_server() {
  local arg quoted=''
  for arg in "$@" -c listen_addresses= -p "${PGPORT:-5432}"; do
    quoted+=" '${arg//\'/\'\\\'\'}'"
  done
  pg_ctl start --wait --silent --pgdata="$PGDATA" --options="$quoted"
}

sql() {
  PGHOST='' PGHOSTADDR='' psql --no-psqlrc --no-password --set=ON_ERROR_STOP=1 \
    --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" "$@"
}

create_database() {
  sql --dbname=postgres --quiet --set=db="$POSTGRES_DB" <<'SQL'
SELECT format('CREATE DATABASE %I', :'db')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'db')
\gexec
SQL
}

run_init_files() {
  local file
  for file in "$init_dir"/*; do
    [[ -e $file ]] || continue
    case $file in
      *.sh)
        if [[ -x $file ]]; then
          say "running $file"
          "$file"
        else
          say "sourcing $file"
          # shellcheck source=/dev/null
          . "$file"
        fi
        ;;
      *.sql) say "running $file"; sql --file="$file" ;;
      *.sql.gz) say "running $file"; gzip -dc "$file" | sql ;;
      *.sql.xz) say "running $file"; xz -dc "$file" | sql ;;
      *.sql.zst) say "running $file"; zstd -dc "$file" | sql ;;
      *) say "ignoring $file" ;;
    esac
  done
}

initialise() {
  if [[ -z $POSTGRES_PASSWORD && ${POSTGRES_HOST_AUTH_METHOD:-} != trust ]]; then
    die "the superuser would have no password: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE" \
      "(POSTGRES_HOST_AUTH_METHOD=trust does without)"
  fi
  [[ ! -d $init_dir || -r $init_dir ]] || die "$init_dir cannot be read by uid $EUID"

  create_cluster
  open_to_the_network "$@"
  # Init scripts need it where POSTGRES_INITDB_ARGS asks for passwords on the socket too.
  export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
  start_private_server "$@"
  create_database
  run_init_files
  pg_ctl stop --wait --silent --mode=fast --pgdata="$PGDATA"
  unset PGPASSWORD
  say "initialisation done"
}

prepare() {
  resolve POSTGRES_USER postgres
  resolve POSTGRES_PASSWORD
  resolve POSTGRES_DB "$POSTGRES_USER"
  resolve POSTGRES_INITDB_ARGS
  own_directories
  if [[ $EUID -eq 0 ]]; then
    # Secret files may be root's alone, so this comes after they are read.
    HOME=$(getent passwd postgres | cut -d: -f6)
    export HOME
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- "${BASH_SOURCE[0]}" "$@"
  fi
  if [[ -s $PGDATA/PG_VERSION ]]; then
    say "$PGDATA holds a database. Skipping initialization."
  else
    initialise "${@:2}"
  fi
}

if [[ ${1:-} == -* ]]; then set -- postgres "$@"; fi
if [[ ${1:-} == postgres ]] && ! prints_and_quits "$@"; then
  prepare "$@"
fi
exec "$@"
