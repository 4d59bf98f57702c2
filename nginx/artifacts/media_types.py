"""Print Python's table of media types as JSON: what artifacts.js needs to name types as MLflow does.

Run by the build with the interpreter that MLflow has (the same Debian package).
"""

import json
import mimetypes

mimetypes.init()
table = {
    "types": mimetypes.types_map,
    "suffixes": mimetypes.suffix_map,
    "encodings": mimetypes.encodings_map,
}
print(json.dumps(table, sort_keys=True))
