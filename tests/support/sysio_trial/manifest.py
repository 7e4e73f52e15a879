# Freezes the trial in place of podwire's client: see launcher/manifest.py.
# ruff: noqa: F821
# mypy: ignore-errors
module("boot.py", base_path="$(PORT_DIR)/../../tests/support/sysio_trial")
