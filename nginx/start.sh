#!/bin/sh
# Check the settings, render them for nginx, test the configuration, start; take up a new certificate,
# a new key of the door and a new one of the storage, and a new day's log.
set -eu

# quoted WORDS: as a regular expression that matches them alone.
quoted() { printf '%s' "$1" | sed 's/[].[]/\\&/g'; }

refuse() { printf 'REFUSED: %s\nfix: %s\n' "$1" "$2" >&2; exit 78; }

mkdir -p /tmp/nginx
door_key=/secrets/nginx/door_key
storage_key=/secrets/nginx/storage.json
settings=/tmp/nginx/settings.conf

public_url=${PUBLIC_URL:-}
public_url=${public_url%/}
public_host=${public_url#*://}
if [ -n "$public_url" ] && ! printf '%s' "$public_url" | tr '\n' ' ' | grep -Eq '^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?$'; then
    refuse "PUBLIC_URL is '$public_url'" 'write scheme, host and, if any, port in .env: PUBLIC_URL=https://mlflow.example.com'
fi

# Who moves the bytes of artifacts. Compose says which; alone, this image does without the storage's key.
artifact_bytes=${ARTIFACT_BYTES:-mlflow}
case $artifact_bytes in
    mlflow) ;;
    nginx)
        # nginx speaks plain HTTP to a storage of the stack's own network, and to no other.
        if ! printf '%s' "${S3_ENDPOINT_URL:-}" | tr '\n' ' ' | grep -Eq '^http://[A-Za-z0-9.-]+(:[0-9]{1,5})?$'; then
            printf 'artifacts go through MLflow: nginx cannot reach a storage at "%s"\n' "${S3_ENDPOINT_URL:-}" >&2
            artifact_bytes=mlflow
        elif ! [ -r "$storage_key" ]; then
            refuse "ARTIFACT_BYTES is nginx and $storage_key cannot be read" './stack up makes it'
        fi ;;
    *) refuse "ARTIFACT_BYTES is '$artifact_bytes'" 'write nginx or mlflow in .env: ARTIFACT_BYTES=nginx' ;;
esac
if [ "$artifact_bytes" = nginx ]; then
    echo 'load_module /usr/lib/nginx/modules/ngx_http_js_module.so;' >/tmp/nginx/modules.conf
    echo 'include /opt/nginx/artifacts/routes.conf;' >/tmp/nginx/artifacts.conf
else
    : >/tmp/nginx/modules.conf
    echo 'include /opt/nginx/artifacts/mlflow.conf;' >/tmp/nginx/artifacts.conf
fi

authorization=${AUTHORIZATION:-roles}
case $authorization in
    roles | rbac) ;;
    *) refuse "AUTHORIZATION is '$authorization'" 'write roles or rbac in .env: AUTHORIZATION=roles' ;;
esac

# The fast path knows nothing of MLflow's permissions.
fastpath=${FASTPATH:-on}
case $fastpath:$authorization in
    on:roles) fastpath_files=/opt/nginx/fastpath ;;
    on:rbac | off:*) fastpath_files='' ;;
    *) refuse "FASTPATH is '$fastpath'" 'write on or off in .env: FASTPATH=on' ;;
esac
for part in http server; do
    printf '%s' "${fastpath_files:+include $fastpath_files/$part.conf;}" >"/tmp/nginx/fastpath-$part.conf"
done

{
    if [ -n "$public_url" ]; then
        # Loopback names stay: health checks and ./stack on the server itself.
        printf 'map "$uri|$public_host" $refuse_host {\n    default 1;\n    "~^/health\\|" 0;\n'
        printf '    "~*\\|%s$" 0;\n' "$(quoted "$public_host")"
        printf '    "~*\\|(localhost|127\\.0\\.0\\.1|\\[::1\\])(:[0-9]+)?$" 0;\n}\n'
        printf 'map "" $public_url_origin { default "%s"; }\n' "$public_url"
    else
        printf 'map "" $refuse_host { default 0; }\nmap "" $public_url_origin { default ""; }\n'
    fi

    printf 'geo $realip_remote_addr $from_trusted_proxy {\n    default 0;\n'
    for proxy in $(printf '%s' "${TRUSTED_PROXIES:-}" | tr ',' ' '); do
        printf '%s' "$proxy" | grep -Eq '^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$' ||
            refuse "TRUSTED_PROXIES holds '$proxy', which is no address and no network" \
                'write addresses or networks with commas between them in .env: TRUSTED_PROXIES=10.0.0.5,192.168.0.0/16'
        printf '    %s 1;\n' "$proxy"
    done
    printf '}\n'
    for proxy in $(printf '%s' "${TRUSTED_PROXIES:-}" | tr ',' ' '); do
        printf 'set_real_ip_from %s;\n' "$proxy"
    done
    printf 'real_ip_header X-Forwarded-For;\nreal_ip_recursive on;\n'

    # Who comes to port 80 is sent to the port that PUBLIC_URL names, others to where they asked.
    printf 'map $http_host $secure_address {\n    default "https://$http_host";\n'
    case $public_url in
        https://*)
            printf '    "~*^%s(:80)?$" "%s";\n' "$(quoted "$(printf '%s' "$public_host" | sed 's/:[0-9]*$//')")" "$public_url" ;;
    esac
    printf '}\n'
    printf 'map "" $authorization { default "%s"; }\n' "$authorization"

    # $artifact_bytes tells MLflow that nginx can move an artifact (artifacts/routes.conf).
    if [ "$artifact_bytes" = nginx ]; then
        printf 'map "" $store { default "%s"; }\n' "${S3_ENDPOINT_URL#http://}"
        printf 'map "" $store_root { default "/%s/%s"; }\n' "${S3_BUCKET:-mlflow}" "${S3_PREFIX:-artifacts}"
        printf 'js_var $artifact_bytes;\ninclude /opt/nginx/artifacts/http.conf;\n'
    else
        printf 'map "" $artifact_bytes { default ""; }\n'
    fi
} >"$settings"

# What shows MLflow that a request comes from here (AUTHORIZATION=rbac). A file of its own, which
# nobody else may read; empty, nginx sends no such header.
render_door() (
    umask 077
    door=''
    [ "$authorization" = roles ] || door=$(cat "$door_key") || exit 1
    printf 'map "" $door_key { default "%s"; }\n' "$door" >/tmp/nginx/door.conf
)
render_door || refuse "AUTHORIZATION is $authorization and $door_key cannot be read" './stack up makes it'

# Plain HTTP on a TLS port is 497 to nginx: server.d/25-plain-http.conf.
case ${TLS_MODE:-off} in
    off) echo 'listen 8080 backlog=2048;' ;;
    self-signed | files | acme)
        echo 'listen 8080 ssl backlog=2048;'
        echo 'http2 on;'
        echo 'include /tmp/nginx/certificate.conf;'
        echo 'ssl_protocols TLSv1.2 TLSv1.3;'
        echo 'ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305;'
        echo 'ssl_session_cache shared:tls:10m;'
        echo 'ssl_session_timeout 1d;'
        echo 'ssl_session_tickets off;' ;;
    *) refuse "TLS_MODE is '$TLS_MODE'" 'write off, self-signed, files or acme in .env: TLS_MODE=self-signed' ;;
esac >/tmp/nginx/listen.conf

# Browsers are told to come by TLS only where the certificate is one that they trust.
case ${TLS_MODE:-off}:$public_url in
    files:https://* | acme:https://*) echo 'map $scheme $hsts { https "max-age=31536000"; }' ;;
    *) echo 'map "" $hsts { default ""; }' ;;
esac >>"$settings"

# The ACME server's (one file with its key) as soon as there is one, else the one among the secrets.
choose_certificate() {
    certificate=/secrets/nginx/cert.pem
    key=/secrets/nginx/key.pem
    if [ "${TLS_MODE:-off}" = acme ] && [ -r /acme/door.pem ]; then
        certificate=/acme/door.pem
        key=$certificate
    fi
}
render_certificate() {
    choose_certificate
    printf 'ssl_certificate %s;\nssl_certificate_key %s;\n' "$certificate" "$key" >/tmp/nginx/certificate.conf
}
render_certificate

# The audit log's file of today; nowhere while its volume takes none, for that must stop no request.
# Returns 1 if nothing changed.
link_log() {
    today=/audit/nginx/access-$(date -u +%F).jsonl
    (: >>"$today") 2>/dev/null || today=/dev/null
    [ "$(readlink /tmp/nginx/access.jsonl)" != "$today" ] || return 1
    [ "$today" != /dev/null ] || echo 'the audit log misses requests: /audit/nginx cannot be written' >&2
    ln -sfn "$today" /tmp/nginx/access.jsonl
}
link_log || :

# A changed certificate or key is taken up by new connections; those that are open go on.
fingerprint() { choose_certificate; cat "$certificate" "$key" "$door_key" "$storage_key" 2>/dev/null | cksum; }
follow_files() {
    known=$(fingerprint)
    while sleep 5; do
        ! link_log || nginx -s reopen -c /opt/nginx/nginx.conf || :
        now=$(fingerprint)
        [ "$now" != "$known" ] || continue
        render_certificate
        # Half of a change (its other file comes now) is tried again.
        if render_door && nginx -t -q -c /opt/nginx/nginx.conf 2>/dev/null && nginx -s reload -c /opt/nginx/nginx.conf; then
            known=$now
        fi
    done
}

if ! nginx -t -q -c /opt/nginx/nginx.conf; then
    refuse 'nginx does not accept the rendered configuration (see above)' 'correct PUBLIC_URL, TRUSTED_PROXIES or TLS_MODE in .env'
fi
follow_files &
exec nginx -c /opt/nginx/nginx.conf -g 'daemon off;'
