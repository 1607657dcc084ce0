"""Recordings, results and live systems in a web browser; viser is imported in `server`, `scene` and `panel` alone."""
