"""The demo: a recording through the real nodes, and what came out as files, a table and a picture."""
