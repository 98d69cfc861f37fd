#!/usr/bin/env bash
# Fill a folder for redis.conf: a certificate authority, the server's certificate, users with random passwords.
#
#   deploy/redis/prepare.sh FOLDER HOST [HOST...]
#
# HOSTs are the names and addresses by which clients reach the server. What is there already is kept.
set -euo pipefail
umask 077
[ $# -ge 2 ] || { echo "usage: $0 FOLDER HOST [HOST...]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$1; shift
mkdir -p "$folder"; cd "$folder"

names=()
for host in "$@"; do
  if [[ $host =~ ^[0-9.]+$|: ]]; then names+=("IP:$host"); else names+=("DNS:$host"); fi
done
[ -f ca.crt ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
  -keyout ca.key -out ca.crt -subj "/CN=Firstdraft Redis CA" 2>/dev/null
if [ ! -f server.crt ]; then
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj "/CN=$1" 2>/dev/null
  openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -out server.crt \
    -extfile <(echo "subjectAltName=$(IFS=,; echo "${names[*]}")") 2>/dev/null
  rm server.csr
fi

if [ ! -f users.acl ]; then
  acl=$(cat "$here/users.acl.template")
  : > passwords
  for user in OPERATOR GATEWAY EDGE CLOUD METRICS; do
    password=$(openssl rand -hex 32)
    digest=$(printf %s "$password" | openssl dgst -sha256 -r | cut -d' ' -f1)
    acl=${acl//@$user@/$digest}
    echo "${user,,} $password" >> passwords
  done
  echo "$acl" > users.acl
fi
cp "$here/redis.conf" redis.conf

while read -r user password; do
  echo "$user: REDIS_URL='rediss://$user:$password@$1:6379/0?ssl_ca_certs=$PWD/ca.crt'"
done < passwords
