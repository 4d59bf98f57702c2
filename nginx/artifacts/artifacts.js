// Artifact bytes between clients and the storage (ARTIFACT_BYTES=nginx): which requests are plainly simple,
// the signature that the storage wants (AWS SigV4), and the headers of the answer. Everything that is not
// plainly simple is MLflow's, whose rules stay the only rules.
//
// nginx's njs runs this, and Node in tests/unit/test_artifact_bytes_script.py: so no class, no destructuring.
import crypto from 'crypto';

const ROUTES = ['/api/2.0/mlflow-artifacts/artifacts/', '/ajax-api/2.0/mlflow-artifacts/artifacts/'];
// Where MLflow 3.17.2 itself puts the artifacts of runs, logged models and traces.
const PLACE = /^[0-9]{1,20}\/(?:[0-9a-f]{32}|models\/m-[0-9a-f]{32}|traces\/tr-[0-9a-f]{32})\/artifacts\//;
// Names that MLflow's decoding, the storage and every file system take as they are.
const PART = /^[A-Za-z0-9_-](?:[A-Za-z0-9_.+=@ -]*[A-Za-z0-9_+=@-])?$/;
const FOLDER_MARK = '__XLDIR__';
const PART_LIMIT = 255;
const KEY_LIMIT = 1000;
// What nginx keeps in memory (routes.conf).
const SMALL_UPLOAD = 256 * 1024;
const LARGEST_UPLOAD = 5 * 1024 * 1024 * 1024;

const REGION = 'us-east-1';
const PAYLOAD = 'UNSIGNED-PAYLOAD';
const SIGNED = 'host;x-amz-content-sha256;x-amz-date';

// The list of mlflow/utils/mime_type_utils.py, 3.17.2.
const TEXT = ['txt', 'log', 'err', 'cfg', 'conf', 'cnf', 'cf', 'ini', 'properties', 'prop', 'hocon', 'toml', 'yaml',
    'yml', 'xml', 'json', 'js', 'py', 'py3', 'csv', 'tsv', 'md', 'rst', 'ipynb', 'MLmodel', 'mlproject'];
const TOKEN = /^[!#$%&'*+\-.0-9A-Z^_`a-z|~]+$/;

// What an object keeps of the storage's headers; the others are the storage's own.
const KEPT = ['content-length', 'content-range', 'accept-ranges'];
const KEPT_OF_UPLOAD = ['content-length'];

// ---- names ----

// The path of an artifact below the root of all, or '' if it is not plainly simple.
function pathOf(rawUri) {
    const route = ROUTES.filter((known) => rawUri.startsWith(known))[0];
    if (!route) {
        return '';
    }
    const parts = rawUri.slice(route.length).split('/');
    for (let i = 0; i < parts.length; i++) {
        try {
            parts[i] = decodeURIComponent(parts[i]);
        } catch (e) {
            return '';
        }
        if (parts[i].length > PART_LIMIT || !PART.test(parts[i]) || parts[i].indexOf(FOLDER_MARK) >= 0) {
            return '';
        }
    }
    const path = parts.join('/');
    return path.length <= KEY_LIMIT && PLACE.test(path) ? path : '';
}

// read, write, small (to be written), or '' for what is MLflow's.
function planFor(method, path, headers) {
    if (!path || headers.transferEncoding) {
        return '';
    }
    const length = headers.contentLength;
    if (method === 'GET' || method === 'HEAD') {
        return length === undefined || length === '0' ? 'read' : '';
    }
    if (method === 'PUT' && length !== undefined && /^[0-9]{1,12}$/.test(length)) {
        if (Number(length) <= SMALL_UPLOAD) {
            return 'small';
        }
        return Number(length) <= LARGEST_UPLOAD ? 'write' : '';
    }
    return '';
}

// ---- the storage's signature: AWS SigV4 ----

function escaped(text) {
    return encodeURIComponent(text).replace(/[!'()*]/g, (c) => '%' + c.charCodeAt(0).toString(16).toUpperCase());
}

// The path of an object as it is signed and sent: both must be the same.
function objectUri(root, path) {
    return root + '/' + path.split('/').map(escaped).join('/');
}

// A moment as SigV4 writes it: 20260102T030405Z.
function stamp(date) {
    return date.toISOString().replace(/[-:]|\.\d+/g, '');
}

function hmac(key, text) {
    return crypto.createHmac('sha256', key).update(text).digest();
}

// The value of Authorization for a request without query and with nothing signed but what must be.
function authorization(method, host, uri, date, key) {
    const day = date.slice(0, 8);
    const scope = day + '/' + REGION + '/s3/aws4_request';
    const canonical = [method, uri, '', 'host:' + host, 'x-amz-content-sha256:' + PAYLOAD, 'x-amz-date:' + date, '',
        SIGNED, PAYLOAD].join('\n');
    const digest = crypto.createHash('sha256').update(canonical).digest('hex');
    const signing = hmac(hmac(hmac(hmac('AWS4' + key.secret_key, day), REGION), 's3'), 'aws4_request');
    const signature = crypto.createHmac('sha256', signing)
        .update(['AWS4-HMAC-SHA256', date, scope, digest].join('\n')).digest('hex');
    return 'AWS4-HMAC-SHA256 Credential=' + key.access_key + '/' + scope + ', SignedHeaders=' + SIGNED +
        ', Signature=' + signature;
}

// ---- headers by name, as MLflow makes them ----

function lastPart(path) {
    return path.slice(path.lastIndexOf('/') + 1);
}

// Python's os.path.splitext, for names that do not begin with a dot.
function splitExtension(name) {
    const dot = name.lastIndexOf('.');
    return dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ''];
}

// Python's mimetypes.guess_type: {type, encoding}, '' for what is not known.
function guess(name, table) {
    let parts = splitExtension(name);
    while (table.suffixes[parts[1].toLowerCase()]) {
        parts = splitExtension(parts[0] + table.suffixes[parts[1].toLowerCase()]);
    }
    const encoding = table.encodings[parts[1]] || '';
    if (encoding) {
        parts = splitExtension(parts[0]);
    }
    return {type: table.types[parts[1].toLowerCase()] || '', encoding: encoding};
}

// mlflow.utils.mime_type_utils._guess_mime_type; a script is text, as in http.d/artifacts.conf.
function contentType(name, table) {
    const extension = splitExtension(name)[1].replace('.', '') || name;
    if (TEXT.indexOf(extension) >= 0) {
        return 'text/plain';
    }
    const type = guess(name, table).type || 'application/octet-stream';
    return /(java|ecma|live)script/i.test(type) ? 'text/plain' : type;
}

// mlflow.server.handlers._content_disposition_attachment for names of PART's characters.
function disposition(name) {
    return 'attachment; filename=' + (TOKEN.test(name) ? name : '"' + name + '"');
}

// ---- what nginx asks for ----

function sign(r, path) {
    const v = r.variables;
    const date = stamp(new Date());
    const uri = objectUri(v.store_root, path);
    v.artifact_uri = uri;
    v.artifact_date = date;
    v.artifact_authorization = authorization(r.method, v.store, uri, date, storage);
    if (r.method === 'PUT') {
        v.artifact_there_authorization = authorization('HEAD', v.store, uri, date, storage);
    }
}

// What becomes of a request for an artifact, and its signature.
function plan(r) {
    const path = pathOf(r.variables.request_uri);
    const planned = planFor(r.method, path, {
        contentLength: r.headersIn['Content-Length'],
        transferEncoding: r.headersIn['Transfer-Encoding'],
    });
    if (!planned) {
        return '';
    }
    sign(r, path);
    const v = r.variables;
    const name = lastPart(path);
    if (planned !== 'read') {
        const guessed = guess(name, types);
        v.artifact_stored_type = guessed.type;
        v.artifact_stored_encoding = guessed.encoding;
    } else {
        v.artifact_answer_type = contentType(name, types);
        v.artifact_disposition = disposition(name);
    }
    return planned;
}

// The same for an object that MLflow has named in its answer, with the headers that it has made.
function handed(r) {
    const v = r.variables;
    if (!v.upstream_http_x_artifact_path || (r.method !== 'GET' && r.method !== 'HEAD')) {
        return '';
    }
    sign(r, decodeURIComponent(v.upstream_http_x_artifact_path));
    const type = v.upstream_http_x_artifact_type;
    v.artifact_answer_type = /(java|ecma|live)script/i.test(type) ? 'text/plain' : type;
    v.artifact_disposition = v.upstream_http_x_artifact_disposition;
    v.artifact_caching = v.upstream_http_x_artifact_caching || '';
    return 'read';
}

// The head of the storage's answer becomes that of MLflow.
function answer(r) {
    const kept = r.method === 'PUT' ? KEPT_OF_UPLOAD : KEPT;
    for (let name in r.headersOut) {
        if (kept.indexOf(name.toLowerCase()) < 0) {
            delete r.headersOut[name];
        }
    }
    if (r.method !== 'PUT') {
        r.headersOut['Content-Type'] = r.variables.artifact_answer_type;
        r.headersOut['Content-Disposition'] = r.variables.artifact_disposition;
        if (r.variables.artifact_caching) {
            r.headersOut['Cache-Control'] = r.variables.artifact_caching;
        }
    }
}

export default {plan, handed, answer, pathOf, planFor, objectUri, stamp, authorization, guess, contentType, disposition,
    TEXT};
