"""Where the demo's text comes from: one module per source, which reads unpacked packages and yields records."""
