# What is frozen into the executable's front. MicroPython's tools/makemanifest.py executes this
# file, and so does build.py, to know what the front depends on. PORT_DIR is launcher/port.
# ruff: noqa: F821
# mypy: ignore-errors
module("boot.py", base_path="$(PORT_DIR)/..")
module("unpack.py", base_path="$(PORT_DIR)/..")
module("archive.py", base_path="$(PORT_DIR)/..")
module("client.py", base_path="$(PORT_DIR)/../../cni_plugin")
module("cniversions.py", base_path="$(PORT_DIR)/../../cni_plugin")
module("probing.py", base_path="$(PORT_DIR)/../../cni_plugin")
module("runtimefolder.py", base_path="$(PORT_DIR)/../../cni_plugin")
module("runtimes.py", base_path="$(PORT_DIR)/../../cni_plugin")
module("version.py", base_path="$(PORT_DIR)/../../cni_plugin")
module("wire.py", base_path="$(PORT_DIR)/../../cni_plugin")
