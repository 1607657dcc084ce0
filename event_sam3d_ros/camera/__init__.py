"""Camera geometry: intrinsics and rectification."""
