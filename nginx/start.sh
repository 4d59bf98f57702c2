#!/bin/sh
# Check the settings, render them for nginx, test the configuration, start.
set -eu

refuse() { printf 'REFUSED: %s\nfix: %s\n' "$1" "$2" >&2; exit 78; }

mkdir -p /tmp/nginx
settings=/tmp/nginx/settings.conf

public_url=${PUBLIC_URL:-}
public_url=${public_url%/}
public_host=${public_url#*://}
if [ -n "$public_url" ] && ! printf '%s' "$public_url" | tr '\n' ' ' | grep -Eq '^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?$'; then
    refuse "PUBLIC_URL is '$public_url'" 'write scheme, host and, if any, port in .env: PUBLIC_URL=https://mlflow.example.com'
fi

{
    if [ -n "$public_url" ]; then
        # Loopback names stay: health checks and ./stack on the server itself.
        printf 'map "$uri|$public_host" $refuse_host {\n    default 1;\n    "~^/health\\|" 0;\n'
        printf '    "~*\\|%s$" 0;\n' "$(printf '%s' "$public_host" | sed 's/[].[]/\\&/g')"
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
} >"$settings"

if ! nginx -t -q -c /opt/nginx/nginx.conf; then
    refuse 'nginx does not accept the rendered configuration (see above)' 'correct PUBLIC_URL or TRUSTED_PROXIES in .env'
fi
exec nginx -c /opt/nginx/nginx.conf -g 'daemon off;'
