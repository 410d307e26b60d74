"""Where the demo's text comes from: one module a source, each reads unpacked packages and yields records."""
