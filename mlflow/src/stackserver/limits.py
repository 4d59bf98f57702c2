"""What an artifact's name may be. Imports nothing: MLflow loads artifacts.py while it is itself imported."""

PART_LIMIT, KEY_LIMIT = 255, 1024
"""Bytes of a part between slashes (of a file's name on Linux) and of a whole key (S3)."""
FOLDER_MARK = "__XLDIR__"
"""MinIO keeps an object whose key ends with a slash under this name, and lists what ends with it as such: a
folder with content, which no file system can hold beside the folder's files, and so no backup."""
