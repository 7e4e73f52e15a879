"""podwire's own version: read by the packaging, shown by the tool."""

VERSION = "0.1.0"
